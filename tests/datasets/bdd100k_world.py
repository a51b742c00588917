"""A tiny BDD100K root in the official layout: hand-made boxes and masks, real JPEG and PNG files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

SIZE = (64, 36)  # width, height


def label(number: int, category: str = "car", **options: Any) -> dict[str, Any]:
    """A label in the form of det_20; its box depends on its number."""
    box = {"x1": 2.5 + number, "y1": 3.0, "x2": 20.25 + number, "y2": 17.0}
    attributes = {"occluded": False, "truncated": False, "trafficLightColor": "NA"}
    return {"id": f"{number:04d}", "category": category, "attributes": attributes, "box2d": box, **options}


def frame(name: str, *labels: Mapping[str, Any]) -> dict[str, Any]:
    """A frame in the form of det_20; without labels the key is absent, as there."""
    found: dict[str, Any] = {
        "name": name,
        "attributes": {"weather": "clear", "timeofday": "daytime", "scene": "highway"},
        "timestamp": 10000,
    }
    return {**found, "labels": list(labels)} if labels else found


def write_image(path: Path, number: int, size: tuple[int, int] = SIZE) -> None:
    """A JPEG, or what the name says, of one colour with noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(number)
    assert cv2.imwrite(str(path), rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))


def write_mask(path: Path, values: Sequence[int] = (0, 10, 255), size: tuple[int, int] = SIZE) -> None:
    """A mask of vertical stripes with these ids."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stripes = np.array(values, np.uint8)[np.arange(size[0]) % len(values)]
    assert cv2.imwrite(str(path), np.ascontiguousarray(np.broadcast_to(stripes, (size[1], size[0]))))


def write_frames(root: Path, split: str, frames: Sequence[Mapping[str, Any]]) -> Path:
    """The file of boxes."""
    path = root / "labels" / "det_20" / f"det_{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(list(frames)))
    return path


def write_root(root: Path, *, num_det: int = 6, num_seg: int = 4) -> Path:
    """Train: `num_det` frames with boxes (the last has none), `num_seg` with masks, one with both; val: two and two.

    There is an unlabelled image in each set, as in the downloads.
    """
    for split, dets, segs in (("train", num_det, num_seg), ("val", 2, 2)):
        names = [f"{split}-det-{number}.jpg" for number in range(dets)]
        frames = [
            frame(name, label(number), label(number + 9, "person")) for number, name in enumerate(names[:-1])
        ]
        frames.append(frame(names[-1]))
        if split == "train":
            frames.insert(2, frame("train-both.jpg", label(3, "rider")))
            write_image(root / "images" / "10k" / split / "train-both.jpg", 77)
            write_mask(root / "labels" / "sem_seg" / "masks" / split / "train-both.png", (1, 2))
        write_frames(root, split, frames)
        for number, entry in enumerate(frames):
            write_image(root / "images" / "100k" / split / entry["name"], number)
        write_image(root / "images" / "100k" / split / f"{split}-unlabelled.jpg", 50)
        write_image(root / "images" / "10k" / split / f"{split}-unlabelled.jpg", 50)
        for number in range(segs):
            write_image(root / "images" / "10k" / split / f"{split}-seg-{number}.jpg", 100 + number)
            write_mask(
                root / "labels" / "sem_seg" / "masks" / split / f"{split}-seg-{number}.png", (number, 18, 255)
            )
    return root

"""Ground truth and predictions of images on disk: Scalabel's JSON and BDD100K's masks, read and written."""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from pycocotools import mask as coco_mask

from perception.evaluation.image_boxes import ImageBoxes
from perception.structures.driving_2d import IGNORE_SEG, exclusive2inclusive, inclusive2exclusive
from perception.utils import DataError, did_you_mean, read_json

NAME_MAPPING = {
    "bike": "bicycle",
    "caravan": "car",
    "motor": "motorcycle",
    "person": "pedestrian",
    "van": "car",
}
"""Other names of box categories → the class."""

IGNORED_MAPPING = {"other person": "pedestrian", "other vehicle": "car", "trailer": "truck"}
"""Box categories that no class stands for → the class under which their boxes are ignored."""


def read_frames(path: str | Path) -> list[dict[str, Any]]:
    """Frames of a Scalabel file: a list, or an object with the key "frames".

    Raises:
        DataError: the file is missing, no such JSON, or names a frame twice.
    """
    try:
        content = read_json(path)
    except FileNotFoundError as error:
        raise DataError("there is no such file of labels", path=path) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"the file is not JSON: {error}", path=path) from error
    frames = content.get("frames") if isinstance(content, dict) else content
    if not isinstance(frames, list) or not all(
        isinstance(frame, dict) and "name" in frame for frame in frames
    ):
        raise DataError(
            'Scalabel\'s frames are a list of objects with a "name", or stand under "frames"; found '
            f"{type(frames).__name__}",
            path=path,
        )
    seen: set[str] = set()
    for frame in frames:
        if frame["name"] in seen:
            raise DataError("the frame is listed twice", sample_token=frame["name"], path=path)
        seen.add(frame["name"])
    return frames


def read_boxes(path: str | Path, *, class_names: Sequence[str]) -> dict[str, ImageBoxes]:
    """Frame name → boxes of a Scalabel file, ground truth or predictions; labels without a box are passed over.

    Args:
        path: the file.
        class_names: of the labels.

    Raises:
        DataError: as `read_frames`; a category that nobody maps, a box without its four numbers, or a file in which
            some boxes have a score and others have none.
    """
    found = {frame["name"]: _boxes(frame, class_names, path) for frame in read_frames(path)}
    with_scores = {len(boxes.scores) == len(boxes) for boxes in found.values() if len(boxes)}
    if len(with_scores) > 1:
        raise DataError("some boxes have a score and others have none", path=path)
    return found


def _boxes(frame: Mapping[str, Any], class_names: Sequence[str], path: str | Path) -> ImageBoxes:
    rows, labels, scores, ignored = [], [], [], []
    for label in frame.get("labels") or ():
        box = label.get("box2d")
        if box is None:
            continue
        category = NAME_MAPPING.get(label.get("category"), label.get("category"))
        name = IGNORED_MAPPING.get(category, category)
        if name not in class_names:
            raise DataError(
                f"no class stands for the category {category!r}.{did_you_mean(str(category), class_names)} Known: "
                f"{', '.join((*class_names, *NAME_MAPPING, *IGNORED_MAPPING))}",
                sample_token=frame["name"],
                path=path,
            )
        try:
            rows.append([float(box[key]) for key in ("x1", "y1", "x2", "y2")])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"box2d of label {label.get('id')} needs the numbers x1, y1, x2, y2; found {box}",
                sample_token=frame["name"],
                path=path,
            ) from error
        attributes = label.get("attributes") or {}
        labels.append(class_names.index(name))
        ignored.append(
            category in IGNORED_MAPPING or bool(attributes.get("crowd") or attributes.get("ignored"))
        )
        if label.get("score") is not None:
            scores.append(float(label["score"]))
    if scores and len(scores) != len(rows):
        raise DataError(
            f"{len(scores)} of {len(rows)} boxes have a score", sample_token=frame["name"], path=path
        )
    return ImageBoxes(
        boxes=inclusive2exclusive(np.array(rows, dtype=np.float64).reshape(-1, 4)),
        labels=np.array(labels, dtype=np.int64),
        scores=np.array(scores, dtype=np.float64),
        ignored=np.array(ignored, dtype=bool),
    )


def box_file(frames: Mapping[str, ImageBoxes], *, class_names: Sequence[str]) -> Iterator[bytes]:
    """Pieces of a Scalabel file of predictions, BDD100K's submission format, frame by frame in the order given.

    Example:
        >>> boxes = ImageBoxes(boxes=np.array([[0.0, 0.0, 4.0, 8.0]]), labels=np.array([0]), scores=np.array([0.5]))
        >>> b"".join(box_file({"a.jpg": boxes}, class_names=["car"])).decode().splitlines()[1][:38]
        '{"name": "a.jpg", "labels": [{"id": "0'
    """
    number = 0
    for index, (name, found) in enumerate(frames.items()):
        labels = []
        for box, label, score in zip(
            exclusive2inclusive(found.boxes.astype(np.float64)).tolist(),
            found.labels,
            found.scores,
            strict=True,
        ):
            corners = dict(zip(("x1", "y1", "x2", "y2"), box, strict=True))
            labels.append(
                {"id": str(number), "category": class_names[label], "score": float(score), "box2d": corners}
            )
            number += 1
        text = json.dumps({"name": name, "labels": labels}, allow_nan=False, ensure_ascii=False)
        yield f"{',' if index else '['}\n{text}".encode()
    yield b"\n]\n" if frames else b"[]\n"


def read_mask(path: str | Path, *, frame_name: str | None = None) -> np.ndarray:
    """(H, W) uint8 values of a mask file.

    Raises:
        DataError: it is missing, no image, or has colours.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "P"):
                raise DataError(
                    f"a mask has one channel of 8 bits; this file's mode is {image.mode} (BDD100K's folder "
                    "`masks` holds such files, `colormaps` does not)",
                    sample_token=frame_name,
                    path=path,
                )
            return np.array(image, dtype=np.uint8)
    except FileNotFoundError as error:
        raise DataError("there is no such mask", sample_token=frame_name, path=path) from error
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise DataError(f"the mask cannot be read: {error}", sample_token=frame_name, path=path) from error


def encode_mask(mask: np.ndarray) -> bytes:
    """The bytes of a PNG file of (H, W) uint8 values, the same for the same mask."""
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, format="PNG")
    return buffer.getvalue()


def list_masks(folder: str | Path) -> dict[str, Path]:
    """Stem → path of a folder's PNG files, in the order of their names.

    Raises:
        DataError: there is no such folder, or no mask in it.
    """
    found = {path.stem: path for path in sorted(Path(folder).glob("*.png"))}
    if not found:
        raise DataError("there is no mask (*.png) in this folder, or no such folder", path=folder)
    return found


def read_rle_masks(
    path: str | Path, *, class_names: Sequence[str], size: tuple[int, int] = (1280, 720)
) -> dict[str, np.ndarray]:
    """Frame name → (H, W) uint8 mask of a Scalabel file with run lengths (BDD100K's folder `rles`).

    A later label is drawn over an earlier one; categories without a class, and pixels of none, are 255.

    Args:
        path: the file.
        class_names: of the values 0….
        size: width and height.

    Raises:
        DataError: as `read_frames`; or a region of another size or without run lengths.
    """
    masks = {}
    for frame in read_frames(path):
        mask = np.full((size[1], size[0]), IGNORE_SEG, dtype=np.uint8)
        for label in frame.get("labels") or ():
            if label.get("category") not in class_names:
                continue
            if label.get("rle") is None:
                if label.get("poly2d") is None:
                    continue
                raise DataError(
                    f"label {label.get('id')} has a polygon and no run lengths; read the folder `rles` or `masks` "
                    "instead of `polygons`",
                    sample_token=frame["name"],
                    path=path,
                )
            region = coco_mask.decode(label["rle"])
            if region.shape != mask.shape:
                raise DataError(
                    f"label {label.get('id')} is of {region.shape[1]}×{region.shape[0]} pixels, the image of "
                    f"{size[0]}×{size[1]}",
                    sample_token=frame["name"],
                    path=path,
                )
            mask[region > 0] = class_names.index(label["category"])
        masks[frame["name"]] = mask
    return masks

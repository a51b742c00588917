"""Ground truth and predictions of images on disk: Scalabel's JSON and BDD100K's masks, read and written."""

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from pycocotools import mask as coco_mask

from perception.evaluation.image_boxes import ImageBoxes
from perception.structures.driving_2d import (
    BDD_BOX_CLASSES,
    BDD_SEG_CLASSES,
    IGNORE_SEG,
    exclusive2inclusive,
)
from perception.structures.scalabel import read_boxes, read_frames
from perception.utils import DataError


def read_image_boxes(path: str | Path) -> dict[str, ImageBoxes]:
    """Frame name → boxes of a Scalabel file, ground truth or predictions.

    Raises:
        DataError: as `read_boxes`, or a frame is listed twice.
    """
    found: dict[str, ImageBoxes] = {}
    for frame in read_boxes(path):
        if frame.name in found:
            raise DataError("the frame is listed twice", sample_token=frame.name, path=path)
        found[frame.name] = ImageBoxes(
            boxes=frame.bboxes, labels=frame.labels, scores=frame.scores, ignored=frame.is_ignored
        )
    return found


def box_file(frames: Mapping[str, ImageBoxes]) -> Iterator[bytes]:
    """Pieces of a Scalabel file of predictions, BDD100K's submission format, frame by frame in the order given.

    Example:
        >>> boxes = ImageBoxes(boxes=np.array([[0.0, 0.0, 4.0, 8.0]]), labels=np.array([0]), scores=np.array([0.5]))
        >>> b"".join(box_file({"a.jpg": boxes})).decode().splitlines()[1][:38]
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
                {
                    "id": str(number),
                    "category": BDD_BOX_CLASSES[label],
                    "score": float(score),
                    "box2d": corners,
                }
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


def read_rle_masks(path: str | Path, *, size: tuple[int, int] = (1280, 720)) -> dict[str, np.ndarray]:
    """Frame name → (H, W) uint8 mask of a Scalabel file with run lengths (BDD100K's folder `rles`).

    A later label is drawn over an earlier one; categories without a class, and pixels of none, are 255.

    Args:
        path: the file.
        size: width and height.

    Raises:
        DataError: as `read_frames`; or a region of another size or without run lengths.
    """
    masks = {}
    for frame in read_frames(path):
        mask = np.full((size[1], size[0]), IGNORE_SEG, dtype=np.uint8)
        for label in frame.get("labels") or ():
            if label.get("category") not in BDD_SEG_CLASSES:
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
            mask[region > 0] = BDD_SEG_CLASSES.index(label["category"])
        masks[frame["name"]] = mask
    return masks

"""Boxes from files in Scalabel's JSON format: BDD100K's det_20 labels, results and pseudo labels.

Files of hundreds of megabytes are read frame by frame.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perception.structures.driving_2d import BDD_BOX_CLASSES, inclusive2exclusive
from perception.utils import DataError, did_you_mean
from perception.utils.json_stream import JsonStream

NAME_MAPPING = {
    "bike": "bicycle",
    "caravan": "car",
    "motor": "motorcycle",
    "person": "pedestrian",
    "van": "car",
}
"""Other names of the ten classes. *Source*: bdd100k 1.0.1, configs/det.toml."""

IGNORED_MAPPING = {"other person": "pedestrian", "other vehicle": "car", "trailer": "truck"}
"""Categories that are no class: neither objects to find nor false alarms. *Source*: as above."""

_MAX_OUTSIDE = 1.0  # pixels: BDD100K's own boxes end at x2 = 1280 in images whose last column is 1279
_LABELS = {name: label for label, name in enumerate(BDD_BOX_CLASSES)}


@dataclass(frozen=True)
class FrameBoxes:
    """The boxes of a frame.

    Attributes:
        name: the frame's name, which is its image's file name.
        bboxes: (n, 4) float64, x1, y1, x2, y2 in pixels, far edges exclusive.
        labels: (n,) int64, positions in `BDD_BOX_CLASSES`.
        is_ignored: (n,) bool, crowds and categories that are no class.
        scores: (n,) float64, 1 where the file has none.
    """

    name: str
    bboxes: np.ndarray
    labels: np.ndarray
    is_ignored: np.ndarray
    scores: np.ndarray


def read_frames(path: str | Path) -> Iterator[dict[str, Any]]:
    """Frames of a Scalabel file as they stand there, one at a time.

    Args:
        path: JSON file, a list of frames or an object with the key `frames`.

    Raises:
        DataError: no such file, not JSON, not of this form, or a frame has no name.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            stream = JsonStream(file)
            for number, frame in enumerate(_frames(stream)):
                if not isinstance(frame, dict) or not isinstance(frame.get("name"), str):
                    raise _FormError(f"frame {number} is no object with a name")
                yield frame
            if stream.peek():
                raise _FormError("something follows its end")
    except FileNotFoundError as error:
        raise DataError(
            "there is no such label file; unpack the archive that holds it.", path=path
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError, _FormError) as error:
        raise DataError(
            f"not a label file in Scalabel's format ({error}); unpack it again.", path=path
        ) from error


def read_boxes(path: str | Path) -> Iterator[FrameBoxes]:
    """Boxes of each frame of a Scalabel file, in the file's order.

    A frame without `labels` has no boxes, labels without `box2d` are passed over.

    Args:
        path: JSON file of labels or results.

    Raises:
        DataError: as `read_frames`, or a label is defective; names the frame.
    """
    for frame in read_frames(path):
        boxes, problems = frame_boxes(frame)
        if problems:
            raise DataError(problems[0], sample_token=boxes.name, path=path)
        yield boxes


def frame_boxes(
    frame: Mapping[str, Any], *, size: tuple[int, int] | None = None
) -> tuple[FrameBoxes, list[str]]:
    """The boxes of one frame that are right, and what is wrong with the others.

    Args:
        frame: as `read_frames` yields it.
        size: (width, height) of the image; boxes may leave it by one pixel, as some of BDD100K's own do.

    Example:
        >>> label = {"category": "person", "box2d": {"x1": 2, "y1": 3, "x2": 2, "y2": 9}}
        >>> boxes, problems = frame_boxes({"name": "a.jpg", "labels": [label]})
        >>> boxes.bboxes.tolist(), BDD_BOX_CLASSES[boxes.labels[0]], problems
        ([[2.0, 3.0, 3.0, 10.0]], 'pedestrian', [])
    """
    labels = frame.get("labels")
    problems: list[str] = []
    rows: list[tuple[list[float], int, bool, float]] = []
    if not isinstance(labels, list | None):
        problems.append(f"labels must be a list, found {type(labels).__name__}.")
        labels = None
    for number, label in enumerate(labels or ()):
        try:
            row = _parse_label(label, size)
        except _FormError as error:
            which = label.get("id", number) if isinstance(label, dict) else number
            problems.append(f"label {which}: {error}")
            continue
        if row is not None:
            rows.append(row)
    edges = np.array([row[0] for row in rows], dtype=np.float64).reshape(-1, 4)
    boxes = FrameBoxes(
        name=str(frame.get("name")),
        bboxes=inclusive2exclusive(edges),
        labels=np.array([row[1] for row in rows], dtype=np.int64),
        is_ignored=np.array([row[2] for row in rows], dtype=bool),
        scores=np.array([row[3] for row in rows], dtype=np.float64),
    )
    return boxes, problems


class _FormError(ValueError):
    """The JSON is not what Scalabel's format says."""


def _frames(stream: JsonStream) -> Iterator[Any]:
    if stream.peek() != "{":
        yield from (frame for frame, _ in stream.array())
        return
    has_frames = False
    for key in stream.keys():
        if key == "frames":
            has_frames = True
            yield from (frame for frame, _ in stream.array())
        else:
            stream.value()
    if not has_frames:
        raise _FormError("it has no frames")


def _parse_label(label: Any, size: tuple[int, int] | None) -> tuple[list[float], int, bool, float] | None:
    """Inclusive edges, class, whether ignored, score; None where the label is no box."""
    if not isinstance(label, dict):
        raise _FormError(f"it must be an object, found {type(label).__name__}.")
    box = label.get("box2d")
    if box is None:
        return None
    edges = _parse_box(box, size)
    category = label.get("category")
    name = NAME_MAPPING.get(category, category) if isinstance(category, str) else None
    is_ignored = name in IGNORED_MAPPING
    name = IGNORED_MAPPING.get(name, name) if name is not None else None
    if name not in _LABELS:
        known = [*BDD_BOX_CLASSES, *NAME_MAPPING, *IGNORED_MAPPING]
        raise _FormError(
            f"category {category!r} is neither one of the ten classes nor mapped to one."
            f"{did_you_mean(str(category), known)}"
        )
    attributes = label.get("attributes") or {}
    if not isinstance(attributes, dict):
        raise _FormError(f"attributes must be an object, found {type(attributes).__name__}.")
    is_ignored = is_ignored or bool(attributes.get("crowd")) or bool(attributes.get("ignored"))
    score = 1.0 if label.get("score") is None else label["score"]
    if not _is_number(score):
        raise _FormError(f"score must be a finite number, found {score!r}.")
    return edges, _LABELS[name], is_ignored, float(score)


def _parse_box(box: Any, size: tuple[int, int] | None) -> list[float]:
    edges: list[Any] = [box.get(key) for key in ("x1", "y1", "x2", "y2")] if isinstance(box, dict) else []
    if len(edges) != 4 or not all(_is_number(edge) for edge in edges):
        raise _FormError(f"box2d must have four finite numbers x1, y1, x2, y2, found {box!r}.")
    x1, y1, x2, y2 = (float(edge) for edge in edges)
    if x2 < x1 or y2 < y1:
        raise _FormError(f"its box has x2 < x1 or y2 < y1: ({x1:g}, {y1:g}, {x2:g}, {y2:g}).")
    if size is not None:
        width, height = size
        outside = max(-x1, -y1, x2 - (width - 1), y2 - (height - 1))
        if outside > _MAX_OUTSIDE:
            raise _FormError(
                f"its box ({x1:g}, {y1:g}, {x2:g}, {y2:g}) leaves the image of {width}×{height} by {outside:g} pixels."
            )
    return [x1, y1, x2, y2]


def _is_number(value: Any) -> bool:
    # By type, which leaves out booleans. Of whole numbers JSON allows any, also such that no float holds.
    return (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) < 2**53)

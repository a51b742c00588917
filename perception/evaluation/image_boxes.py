"""Boxes of one image with their classes, and COCO's average precision over many, as BDD100K counts it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from perception.evaluation._coco_kernel import precision_and_recall
from perception.utils import name_some

BOX_SCORES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""Names of the overall scores, in the order of `scalabel.eval.detect`."""

_AREAS = {"all": 0, "small": 1, "medium": 2, "large": 3}
_MAX_DETS = {1: 0, 10: 1, 100: 2}


@dataclass(frozen=True, kw_only=True)
class ImageBoxes:
    """Boxes of one image.

    Attributes:
        boxes: (n, 4), float64, x1, y1, x2, y2 in pixels of the image, far edges exclusive.
        labels: (n,), int64, indices of the classes.
        scores: (n,), float64; of predictions.
        ignored: (n,), bool, crowds and ignored objects; of the ground truth.
    """

    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0))
    ignored: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))

    def __len__(self) -> int:
        return len(self.boxes)


def check_names(truth: Mapping[str, Any], found: Mapping[str, Any], *, needs_all: bool = True) -> None:
    """Compare the frames of predictions with those of the ground truth.

    Raises:
        ValueError: a prediction for a frame that has no ground truth, or a frame without a prediction.
    """
    unknown = sorted(found.keys() - truth.keys())
    if unknown:
        raise ValueError(
            f"{len(unknown)} predicted frames are not in the ground truth: {name_some(unknown)}. Predictions and "
            "ground truth must be of one split, and frames are named with their ending, as in name.jpg"
        )
    missing = sorted(truth.keys() - found.keys()) if needs_all else []
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(truth)} frames have no prediction: {name_some(missing)}. Predict the whole split"
        )


def box_scores(
    truth: Mapping[str, ImageBoxes], found: Mapping[str, ImageBoxes], *, class_names: Sequence[str]
) -> dict[str, float]:
    """Average precision and recall in per cent.

    *Source*: `evaluate_det` of scalabel 0.3.1: COCO's ten thresholds, areas and limits of 1, 10 and 100 boxes per image
    and class; an ignored box of the ground truth is a crowd; means run over classes with a box that counts. Computed
    here, by compiled loops: pycocotools' own take minutes for the 10,000 images of the validation set.

    Args:
        truth: frame name → boxes.
        found: frame name → boxes with scores; a frame that is not there has none.
        class_names: of the labels.

    Returns:
        `AP`, `AP50`, `AP75`, `APs`, `APm`, `APl`, `AR1`, `AR10`, `AR100`, `ARs`, `ARm`, `ARl`, and `AP/<class>`; a
        score for which there is no box in the ground truth has no key.

    Raises:
        ValueError: a prediction for an unknown frame, or no box in the ground truth.

    Example:
        >>> boxes, labels = np.array([[0.0, 0.0, 40.0, 40.0]]), np.array([0])
        >>> truth = ImageBoxes(boxes=boxes, labels=labels, ignored=np.array([False]))
        >>> found = ImageBoxes(boxes=boxes, labels=labels, scores=np.array([0.9]))
        >>> scores = box_scores({"a.jpg": truth}, {"a.jpg": found}, class_names=["car"])
        >>> round(scores["AP"], 9), "APs" in scores
        (100.0, False)
    """
    check_names(truth, found, needs_all=False)
    if not any(len(boxes) for boxes in truth.values()):
        raise ValueError(f"none of {len(truth)} frames has a box in the ground truth, so there is no score")
    if not any(len(boxes) for boxes in found.values()):
        return _no_prediction(truth, class_names)
    names = sorted(truth)
    precision, recall = _all_classes(
        [truth[name] for name in names], [found.get(name, ImageBoxes()) for name in names], len(class_names)
    )  # (K, T, R, A, M), (K, T, A, M)
    scores = {}
    for name in BOX_SCORES:
        area = {"s": "small", "m": "medium", "l": "large"}.get(name[2:], "all")
        if name.startswith("AR"):
            limit = 100 if area != "all" else int(name[2:])
            scores[name] = _mean(recall[..., _AREAS[area], _MAX_DETS[limit]])
        else:
            thresholds = {"50": slice(0, 1), "75": slice(5, 6)}.get(name[2:], slice(None))
            scores[name] = _mean(precision[:, thresholds, :, _AREAS[area], _MAX_DETS[100]])
    for label, name in enumerate(class_names):
        scores[f"AP/{name}"] = _mean(precision[label, :, :, _AREAS["all"], _MAX_DETS[100]])
    return {name: score for name, score in scores.items() if score is not None}


def _no_prediction(truth: Mapping[str, ImageBoxes], class_names: Sequence[str]) -> dict[str, float]:
    """All 0, for the classes of the ground truth, as scalabel has it."""
    present = {int(label) for boxes in truth.values() for label in boxes.labels}
    scores = dict.fromkeys(BOX_SCORES, 0.0)
    return scores | {f"AP/{name}": 0.0 for label, name in enumerate(class_names) if label in present}


def _mean(values: np.ndarray) -> float | None:
    """In per cent, over what is defined; COCO marks the rest by -1."""
    known = values[values > -1]
    return float(np.mean(known)) * 100 if known.size else None


def _all_classes(
    truth: Sequence[ImageBoxes], found: Sequence[ImageBoxes], num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    true_boxes, true_labels, true_image = _joined(truth)
    found_boxes, found_labels, found_image = _joined(found)
    is_crowd = np.concatenate([_flags(image.ignored, len(image)) for image in truth])
    scores = np.concatenate([image.scores for image in found])
    curves = []
    for label in range(num_classes):
        is_found, is_true = found_labels == label, true_labels == label
        curves.append(
            precision_and_recall(
                found_boxes[is_found],
                scores[is_found],
                found_image[is_found],
                true_boxes[is_true],
                is_crowd[is_true],
                true_image[is_true],
                len(truth),
            )
        )
    return np.stack([curve[0] for curve in curves]), np.stack([curve[1] for curve in curves])


def _joined(images: Sequence[ImageBoxes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n, 4) x, y, width, height, (n,) labels and (n,) number of the image, of all images."""
    corners = np.concatenate([image.boxes for image in images]).astype(np.float64)
    labels = np.concatenate([image.labels for image in images])
    numbers = np.repeat(np.arange(len(images)), [len(image) for image in images])
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1), labels, numbers


def _flags(ignored: np.ndarray, count: int) -> np.ndarray:
    return ignored if len(ignored) else np.zeros(count, dtype=bool)

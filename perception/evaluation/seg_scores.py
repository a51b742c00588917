"""Scores of semantic segmentation in images from one confusion matrix, by BDD100K's rules."""

from collections.abc import Sequence

import numpy as np

from perception.structures import IGNORE_SEG


def count_pixels(prediction: np.ndarray, truth: np.ndarray, num_classes: int) -> np.ndarray:
    """Confusion matrix of one image.

    *Source*: `fast_hist` of bdd100k 1.0.1: a predicted value outside the classes counts as one more class, a pixel
    whose ground truth is ignored does not count.

    Args:
        prediction: (H, W), uint8 or another integer.
        truth: (H, W), 0…num_classes − 1 or 255.
        num_classes: number of classes.

    Returns:
        (num_classes, num_classes + 1), int64: rows of the ground truth, columns of the prediction, the last one of
        pixels with no class.

    Raises:
        ValueError: the sizes differ, or the ground truth holds another value.

    Example:
        >>> count_pixels(np.array([[0, 255, 1]]), np.array([[0, 0, 255]]), 2).tolist()
        [[1, 0, 1], [0, 0, 0]]
    """
    if prediction.shape != truth.shape:
        raise ValueError(
            f"the predicted mask is of {_size(prediction)} pixels, the ground truth of {_size(truth)}; masks must "
            "have their image's size"
        )
    is_counted = truth != IGNORE_SEG
    rows = truth[is_counted].astype(np.int64)
    if rows.size and not (rows.min() >= 0 and rows.max() < num_classes):
        bad = sorted(set(np.unique(rows).tolist()) - set(range(num_classes)))
        raise ValueError(
            f"the ground truth holds the values {bad}; allowed: 0…{num_classes - 1} and {IGNORE_SEG} (ignored)"
        )
    columns = prediction[is_counted].astype(np.int64)
    columns = np.where((columns < 0) | (columns >= num_classes), num_classes, columns)
    counts = np.bincount(rows * (num_classes + 1) + columns, minlength=num_classes * (num_classes + 1))
    return counts.reshape(num_classes, num_classes + 1)


def seg_scores(confusion: np.ndarray, *, class_names: Sequence[str]) -> dict[str, float]:
    """Scores in per cent of a confusion matrix over all images.

    *Source*: `bdd100k.eval.seg` 1.0.1. Per class IoU = TP / (TP + FP + FN), and "accuracy" = TP / (TP + FP): the
    toolkit divides by what was predicted. Means over classes of the ground truth; fIoU weighs the IoU by the class's
    share of pixels; pAcc is the share of pixels that are right. Pixels without a predicted class count as wrong.

    Args:
        confusion: (C, C + 1), sum of `count_pixels`.
        class_names: the C names.

    Returns:
        `mIoU`, `mAcc`, `fIoU`, `pAcc`, and `IoU/<class>`, `Acc/<class>` of the ground truth's classes.

    Raises:
        ValueError: no pixel has a ground truth.
    """
    hits = np.diag(confusion).astype(np.float64)
    in_truth = confusion.sum(axis=1)
    predicted = confusion[:, :-1].sum(axis=0)
    if not in_truth.any():
        raise ValueError("no pixel has a class in the ground truth, so there is no score")
    union = in_truth + predicted - hits
    ious = np.divide(hits, union, out=np.zeros_like(hits), where=union > 0)
    accuracies = np.divide(hits, predicted, out=np.zeros_like(hits), where=predicted > 0)
    present = np.flatnonzero(in_truth)
    scores = {
        "mIoU": ious[present].mean(),
        "mAcc": accuracies[present].mean(),
        "fIoU": (ious * in_truth / in_truth.sum()).sum(),
        "pAcc": hits.sum() / in_truth.sum(),
        **{f"IoU/{class_names[index]}": ious[index] for index in present},
        **{f"Acc/{class_names[index]}": accuracies[index] for index in present},
    }
    return {name: float(score) * 100 for name, score in scores.items()}


def _size(mask: np.ndarray) -> str:
    return "×".join(str(length) for length in mask.shape[::-1])

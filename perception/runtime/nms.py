"""Thinning out of overlapping 2D boxes, in NumPy."""

import numpy as np

from perception.runtime.manifest import NMS


def select_by_nms(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, nms: NMS) -> np.ndarray:
    """Which boxes stay: class by class, the best first, those that overlap with none that stays.

    Args:
        boxes: (n, 4), x1, y1, x2, y2.
        scores: (n,).
        labels: (n,), int.
        nms: limits.

    Returns:
        (m,), indices, the best score first, at most `nms.max_num`.

    Example:
        >>> boxes = np.array([[0.0, 0, 4, 4], [0, 0, 4, 5], [0, 0, 4, 5]])
        >>> limits = NMS(iou=0.5, score=0.1, max_num=10)
        >>> select_by_nms(boxes, np.array([0.9, 0.8, 0.7]), np.array([0, 0, 1]), limits).tolist()
        [0, 2]
    """
    candidates = np.flatnonzero(scores > nms.score)
    kept = [
        _keep(boxes, scores, candidates[labels[candidates] == label], nms.iou) for label in np.unique(labels)
    ]
    found = np.concatenate([np.zeros(0, np.int64), *kept])
    return found[np.argsort(-scores[found], kind="stable")][: nms.max_num]


def _keep(boxes: np.ndarray, scores: np.ndarray, chosen: np.ndarray, iou: float) -> np.ndarray:
    left = chosen[np.argsort(-scores[chosen], kind="stable")]
    kept = []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        left = left[_overlap(boxes[best], boxes[left]) <= iou]
    return np.array(kept, np.int64)


def _overlap(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n,), intersection over union of one box with others; 0 where both are empty."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    common = np.prod(np.maximum(sides, 0.0), axis=1)
    union = np.prod(box[2:] - box[:2]) + np.prod(others[:, 2:] - others[:, :2], axis=1) - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)

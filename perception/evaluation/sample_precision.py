"""mAP of single nuScenes samples, to tell those that a model predicts well from those that it does not."""

from collections.abc import Sequence

import numpy as np


def sample_precision(
    centres: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    true_centres: np.ndarray,
    true_labels: np.ndarray,
    *,
    distances: Sequence[float] = (0.5, 1.0, 2.0, 4.0),
) -> float | None:
    """Mean over a sample's classes and the distances of the average precision within this one sample.

    Boxes are matched as nuScenes does it: best score first, each to the nearest true box of its class that is still
    free and nearer than the distance. The average precision is the mean over true boxes of the precision at the
    place where each is found, 0 where it is not. *Deviation* from nuScenes' AP, which cuts off precision and recall
    below 0.1: with a handful of boxes that would be coarse.

    Args:
        centres: (n, 2), predicted, metres.
        scores: (n,).
        labels: (n,), any values that can be compared.
        true_centres: (m, 2), metres.
        true_labels: (m,).
        distances: metres; those of nuScenes.

    Returns:
        0…1; None where the ground truth has no box.

    Example:
        >>> found, truth = np.array([[0.0, 0.3], [9.0, 9.0]]), np.array([[0.0, 0.0]])
        >>> cars = np.array(["car", "car"])
        >>> sample_precision(found, np.array([0.9, 0.8]), cars, truth, cars[:1])
        1.0
        >>> sample_precision(found, np.array([0.8, 0.9]), cars, truth, cars[:1])
        0.5
    """
    if not len(true_labels):
        return None
    precisions = []
    for label in np.unique(true_labels):
        is_found = labels == label
        order = np.argsort(-scores[is_found], kind="stable")
        found, truth = centres[is_found][order], true_centres[true_labels == label]
        gaps = np.linalg.norm(found[:, None] - truth[None], axis=-1)  # (n of the class, m of the class)
        precisions += [_precision(gaps, limit) for limit in distances]
    return float(np.mean(precisions))


def _precision(gaps: np.ndarray, limit: float) -> float:
    is_free = np.ones(gaps.shape[1], dtype=bool)
    hits: list[float] = []
    for rank in np.flatnonzero((gaps < limit).any(axis=1)):  # the others match nothing
        row = np.where(is_free, gaps[rank], np.inf)
        nearest = int(row.argmin())
        if row[nearest] < limit:
            is_free[nearest] = False
            hits.append((len(hits) + 1) / (rank + 1))
    return sum(hits) / gaps.shape[1]

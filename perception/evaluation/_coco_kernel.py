"""COCO's matching of predicted with true boxes, and precision over recall, compiled and vectorised.

Legend: T thresholds, R recalls, A areas, M limits of boxes per image; D predicted and G true boxes of a class.
"""

from collections.abc import Sequence

import numpy as np

from perception.utils.jit import kernel

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
AREAS = np.array([[0.0, 1e10], [0.0, 32.0**2], [32.0**2, 96.0**2], [96.0**2, 1e10]])
"""All, small, medium, large: least and largest area, pixels, both included."""
LIMITS = (1, 10, 100)


def precision_and_recall(
    found: np.ndarray,
    scores: np.ndarray,
    found_image: np.ndarray,
    truth: np.ndarray,
    is_crowd: np.ndarray,
    truth_image: np.ndarray,
    num_images: int,
) -> tuple[np.ndarray, np.ndarray]:
    """COCO's precision and recall of one class.

    *Source*: `COCOeval.evaluateImg` and `accumulate` of pycocotools, with equal sums in an equal order.

    Args:
        found: (D, 4), float64, x, y, width, height, pixels.
        scores: (D,), float64.
        found_image: (D,), int64, 0…num_images − 1, never falling.
        truth: (G, 4), float64.
        is_crowd: (G,), bool.
        truth_image: (G,), int64, never falling.
        num_images: number of images.

    Returns:
        (T, R, A, M) and (T, A, M); −1 where no true box counts.
    """
    precision = -np.ones((len(THRESHOLDS), len(RECALLS), len(AREAS), len(LIMITS)))
    recall = -np.ones((len(THRESHOLDS), len(AREAS), len(LIMITS)))
    # Best first within each image; equal scores keep their order.
    order = np.lexsort((np.arange(len(scores)), -scores, found_image))
    found, scores, found_image = found[order], scores[order], found_image[order]
    bounds = np.arange(num_images + 1)
    found_start = np.searchsorted(found_image, bounds)
    truth_start = np.searchsorted(truth_image, bounds)
    rank = np.arange(len(scores)) - found_start[found_image]
    kept = rank < LIMITS[-1]
    found, scores, found_image, rank = found[kept], scores[kept], found_image[kept], rank[kept]
    found_start = np.searchsorted(found_image, bounds)
    truth_area = truth[:, 2] * truth[:, 3]
    found_area = found[:, 2] * found[:, 3]
    for area, (low, high) in enumerate(AREAS):
        is_ignored = is_crowd | (truth_area < low) | (truth_area > high)
        num_truth = int((~is_ignored).sum())
        if num_truth == 0:
            continue
        # Ignored boxes last within each image, as pycocotools has them.
        last = np.lexsort((np.arange(len(truth)), is_ignored, truth_image))
        is_matched, is_dropped = _match(
            found, found_start, truth[last], is_crowd[last], is_ignored[last], truth_start, THRESHOLDS
        )
        is_dropped |= ~is_matched & ((found_area < low) | (found_area > high))
        by_score = np.argsort(-scores, kind="stable")
        for number, limit in enumerate(LIMITS):
            chosen = by_score[rank[by_score] < limit]
            is_true = is_matched[:, chosen] & ~is_dropped[:, chosen]
            is_false = ~is_matched[:, chosen] & ~is_dropped[:, chosen]
            curves = _curves(is_true, is_false, num_truth)
            precision[:, :, area, number], recall[:, area, number] = curves
    return precision, recall


def _curves(is_true: np.ndarray, is_false: np.ndarray, num_truth: int) -> tuple[np.ndarray, np.ndarray]:
    """(T, D) hits and false alarms, best first → (T, R) precision at each recall and (T,) the largest recall."""
    hits = np.cumsum(is_true, axis=1).astype(np.float64)
    alarms = np.cumsum(is_false, axis=1).astype(np.float64)
    if not hits.shape[1]:
        return np.zeros((len(THRESHOLDS), len(RECALLS))), np.zeros(len(THRESHOLDS))
    recall = hits / num_truth
    precision = hits / (alarms + hits + np.spacing(1))
    highest = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    padded = np.concatenate([highest, np.zeros((len(highest), 1))], axis=1)  # a recall that is not reached
    places: Sequence[np.ndarray] = [np.searchsorted(row, RECALLS, side="left") for row in recall]
    return np.stack([row[place] for row, place in zip(padded, places, strict=True)]), recall[:, -1]


@kernel
def _match(
    found: np.ndarray,
    found_start: np.ndarray,
    truth: np.ndarray,
    is_crowd: np.ndarray,
    is_ignored: np.ndarray,
    truth_start: np.ndarray,
    thresholds: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Per threshold and predicted box: whether it has a true box, and whether that is ignored."""
    num_thresholds, num_found = len(thresholds), len(found)
    is_matched = np.zeros((num_thresholds, num_found), dtype=np.bool_)
    is_dropped = np.zeros((num_thresholds, num_found), dtype=np.bool_)
    for image in range(len(found_start) - 1):
        first, end = found_start[image], found_start[image + 1]
        first_true, end_true = truth_start[image], truth_start[image + 1]
        if first == end or first_true == end_true:
            continue
        overlaps = np.zeros((end - first, end_true - first_true))
        for d in range(first, end):
            for g in range(first_true, end_true):
                width = min(found[d, 0] + found[d, 2], truth[g, 0] + truth[g, 2]) - max(
                    found[d, 0], truth[g, 0]
                )
                height = min(found[d, 1] + found[d, 3], truth[g, 1] + truth[g, 3]) - max(
                    found[d, 1], truth[g, 1]
                )
                if width <= 0 or height <= 0:
                    continue
                common = width * height
                own = found[d, 2] * found[d, 3]
                union = own if is_crowd[g] else own + truth[g, 2] * truth[g, 3] - common
                overlaps[d - first, g - first_true] = common / union
        for t in range(num_thresholds):
            is_taken = np.zeros(end_true - first_true, dtype=np.bool_)
            for d in range(first, end):
                best = min(thresholds[t], 1 - 1e-10)
                match = -1
                for g in range(first_true, end_true):
                    if is_taken[g - first_true] and not is_crowd[g]:
                        continue
                    if match > -1 and not is_ignored[match] and is_ignored[g]:
                        break
                    if overlaps[d - first, g - first_true] < best:
                        continue
                    best = overlaps[d - first, g - first_true]
                    match = g
                if match > -1:
                    is_matched[t, d] = True
                    is_dropped[t, d] = is_ignored[match]
                    is_taken[match - first_true] = True
    return is_matched, is_dropped

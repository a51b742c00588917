"""Boxes and masks of one image, moved along with its pixels.

Boxes are (n, 4) x1, y1, x2, y2 in pixels of `img`, the right and the bottom edge outside; masks are (H, W) uint8.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

BOX_KEYS = ("gt_bboxes", "pseudo_bboxes")
MASK_KEYS = ("gt_sem_seg", "pseudo_sem_seg")


def move_labels(
    results: dict[str, Any],
    *,
    boxes: Callable[[np.ndarray], np.ndarray],
    masks: Callable[[np.ndarray], np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """All boxes and masks that the sample has, each changed by its function."""
    moved = {key: boxes(results[key]) for key in BOX_KEYS if key in results}
    if masks is not None:
        moved |= {key: masks(results[key]) for key in MASK_KEYS if key in results}
    return moved


def scale_boxes(boxes: np.ndarray, factor: tuple[float, float]) -> np.ndarray:
    """Boxes in an image that is `factor` (w, h) times as large."""
    return (boxes * np.array([*factor, *factor])).astype(boxes.dtype)


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Each new pixel takes the old pixel that its centre falls into: no class appears that was not there.

    A rectangle's mask so keeps exactly the pixels whose centres lie in the rectangle's scaled box. (OpenCV's nearest
    neighbour takes the pixel at the new one's upper left corner instead, half a pixel off.)

    Args:
        mask: (H, W).
        size: (width, height) of the result.

    Example:
        >>> resize_mask(np.arange(9).reshape(3, 3), (2, 2)).tolist()
        [[0, 2], [6, 8]]
    """
    new_shape = (size[1], size[0])
    if mask.shape == new_shape:
        return mask
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new) for old, new in zip(mask.shape, new_shape, strict=True)
    )
    return mask[rows][:, columns]

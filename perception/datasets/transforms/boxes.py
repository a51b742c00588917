"""Choice of the boxes to learn from."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from perception.datasets.transforms._base import Transform
from perception.registry import TRANSFORMS


@TRANSFORMS.register_module()
class ObjectRangeFilter(Transform):
    """Keep the boxes whose centre lies in the range on the ground (bounds included; height is not looked at).

    Put it behind the augmentations that move boxes.

    Args:
        pc_range: (x_min, y_min, z_min, x_max, y_max, z_max), LiDAR frame, metres.

    Raises:
        ValueError: not six numbers.
    """

    def __init__(self, *, pc_range: Sequence[float]) -> None:
        if len(pc_range) != 6:
            raise ValueError(f"pc_range must have six numbers, got {tuple(pc_range)}.")
        self._low = np.array(pc_range[0:2], dtype=np.float64)
        self._high = np.array(pc_range[3:5], dtype=np.float64)

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Filter."""
        centres = results["gt_bboxes_3d"][:, :2]
        keep_mask = ((centres >= self._low) & (centres <= self._high)).all(axis=1)
        return {
            **results,
            "gt_bboxes_3d": results["gt_bboxes_3d"][keep_mask],
            "gt_labels_3d": results["gt_labels_3d"][keep_mask],
        }

"""Cutting image rows that hold only sky, with the change of `lidar2img` that belongs to it."""

from typing import Any

import numpy as np

from perception.datasets.transforms._base import Transform
from perception.registry import TRANSFORMS


@TRANSFORMS.register_module()
class CropTopMultiView(Transform):
    """Cut rows off the top of all images; `lidar2img` then counts pixels from the new top.

    Above the horizon there is little to learn for boxes on the ground and lines on it; a quarter of the rows is a
    quarter of the backbone's cost.

    *Source*: the crop of LSS and BEVDet, which keep the lower part of the image.

    Args:
        rows: number of rows to cut.

    Raises:
        ValueError: `rows` is negative, or not less than an image's height.
    """

    def __init__(self, *, rows: int) -> None:
        if rows < 0:
            raise ValueError(f"rows must not be negative, got {rows}.")
        self.rows = rows

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Cut."""
        return {**results, "frames": [self._crop_frame(frame) for frame in results["frames"]]}

    def _crop_frame(self, frame: dict[str, Any]) -> dict[str, Any]:
        height = min(len(image) for image in frame["img"])
        if self.rows >= height:
            raise ValueError(f"rows = {self.rows} leaves nothing of an image of {height} rows; crop fewer.")
        shift = np.eye(4)
        shift[1, 2] = -self.rows  # (u·d, v·d, d, 1): v shrinks by `rows`
        return {
            **frame,
            "img": [image[self.rows :] for image in frame["img"]],
            "lidar2img": shift @ frame["lidar2img"],
        }

"""Pinhole cameras: 4×4 matrices that act on column vectors, named `<source>2<target>`."""

from typing import TypeVar

import numpy as np
from torch import Tensor

Array = TypeVar("Array", np.ndarray, Tensor)

MIN_DEPTH = 1e-5
"""Depth, metres, below which a point counts as not in front of the camera (BEVFormer's threshold)."""


def compose_lidar2img(cam2img: np.ndarray, lidar2cam: np.ndarray) -> np.ndarray:
    """Projection of LiDAR points into an image.

    Args:
        cam2img: (3, 3) or (4, 4) intrinsics, pixels.
        lidar2cam: (4, 4), LiDAR frame → camera frame (x right, y down, z forward), metres.

    Returns:
        (4, 4), float64: homogeneous LiDAR metres → (u·d, v·d, d, 1), pixels times depth.
    """
    intrinsics = np.eye(4)
    size = len(cam2img)
    intrinsics[:size, :size] = cam2img
    return intrinsics @ np.asarray(lidar2cam, dtype=np.float64)


def resize_matrix(scale_x: float, scale_y: float) -> np.ndarray:
    """(4, 4) matrix that follows an image's resizing; multiply it to `lidar2img` from the left.

    Pixel coordinates are continuous with the image's corner at (0, 0), so a resize is a pure scaling.
    """
    return np.diag([scale_x, scale_y, 1.0, 1.0])


def project_points(points: Array, lidar2img: Array) -> tuple[Array, Array]:
    """Project points into images.

    Args:
        points: (..., 3), LiDAR frame, metres.
        lidar2img: (..., 4, 4), broadcast against the points' leading axes.

    Returns:
        uv: (..., 2), pixels; meaningful only where the depth exceeds `MIN_DEPTH` (clamped to it for the division).
        depth: (...), metres along the camera's axis, unclamped.

    Example:
        >>> uv, depth = project_points(np.array([2.0, 4.0, 2.0]), np.eye(4))
        >>> uv.tolist(), float(depth)
        ([1.0, 2.0], 2.0)
    """
    image = (lidar2img[..., :3, :3] @ points[..., None])[..., 0] + lidar2img[..., :3, 3]
    depth = image[..., 2]
    is_in_front = depth > MIN_DEPTH
    divisor = depth * is_in_front + MIN_DEPTH * ~is_in_front
    return image[..., :2] / divisor[..., None], depth

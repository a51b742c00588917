"""3D boxes in a camera image, cut at the image plane."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch

from perception.structures import box_corners
from perception.visualization.canvas import check_image, draw_segments
from perception.visualization.palette import Colour

NEAR = 0.2
"""Depth, metres, at which edges that run behind the camera are cut."""

_EDGES = ((0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7))
_FRONT = (4, 5, 6, 7)


def draw_boxes_on_image(
    image: np.ndarray,
    boxes: np.ndarray,
    lidar2img: np.ndarray,
    colours: Sequence[Colour],
    *,
    thickness: int = 2,
    fill: float = 0.25,
    dash: float = 0.0,
) -> np.ndarray:
    """A copy of the image with the boxes as wire frames, far ones first, the front face tinted.

    An edge that crosses the image plane is cut at depth `NEAR` before projection, so boxes beside the car
    show the part that the camera sees and nothing behind the camera is mirrored into the picture.

    Args:
        image: (H, W, 3), uint8, BGR.
        boxes: (n, 7 or more), LiDAR frame, bottom-centre (x, y, z, l, w, h, yaw), metres and rad.
        lidar2img: (4, 4), to pixels of this image.
        colours: (n,), BGR.
        thickness: of the lines, pixels.
        fill: opacity of the front face, 0...1.
        dash: length of dashes, pixels; 0 for solid lines.

    Returns:
        (H, W, 3), uint8, BGR.

    Raises:
        ValueError: the image is not (H, W, 3) uint8, or boxes and colours differ in number.

    Example:
        >>> view = np.array([[10.0, 0, 0, 0], [0, 0, -10, 0], [0, 1, 0, 0], [0, 0, 0, 1]])  # looks along +y
        >>> image = np.zeros((40, 40, 3), np.uint8)
        >>> behind = np.array([[0, -5.0, -1, 2, 2, 2, 0]])
        >>> int(draw_boxes_on_image(image, behind, view, [(255, 255, 255)]).max())
        0
    """
    check_image(image)
    boxes = np.asarray(boxes, dtype=np.float64)
    if len(boxes) != len(colours):
        raise ValueError(f"{len(boxes)} boxes but {len(colours)} colours.")
    image = image.copy()
    if not len(boxes):
        return image
    corners = box_corners(torch.from_numpy(boxes)).numpy()  # (n, 8, 3)
    homogeneous = corners @ lidar2img[:3, :3].T + lidar2img[:3, 3]  # (n, 8, 3): u·d, v·d, d
    for index in np.argsort(-homogeneous[..., 2].mean(axis=1), kind="stable"):
        box = homogeneous[index]
        if (box[:, 2] < NEAR).all():
            continue
        if fill > 0:
            _tint(image, project_polygon(box[list(_FRONT)]), colours[index], fill)
        draw_segments(image, project_segments(box[np.array(_EDGES)]), colours[index], thickness, dash)
    return image


def project_segments(segments: np.ndarray) -> np.ndarray:
    """Pixels of 3D segments, cut at depth `NEAR`; those behind it are left out.

    Args:
        segments: (n, 2, 3), homogeneous image coordinates (u·d, v·d, d).

    Returns:
        (m, 2, 2), pixels, m ≤ n.
    """
    segments = segments[(segments[:, :, 2] >= NEAR).any(axis=1)].copy()
    for end, other in ((0, 1), (1, 0)):
        is_behind = segments[:, end, 2] < NEAR
        inner, outer = segments[is_behind, other], segments[is_behind, end]
        share = (inner[:, 2] - NEAR) / (inner[:, 2] - outer[:, 2])
        segments[is_behind, end] = inner + share[:, None] * (outer - inner)
    return segments[..., :2] / segments[..., 2:]


def project_polygon(polygon: np.ndarray) -> np.ndarray:
    """Pixels of a 3D polygon, cut at depth `NEAR` (Sutherland and Hodgman).

    Args:
        polygon: (k, 3), homogeneous image coordinates (u·d, v·d, d).

    Returns:
        (m, 2), pixels; m = 0 if all of it lies behind.
    """
    kept = []
    for first, second in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if first[2] >= NEAR:
            kept.append(first)
        if (first[2] >= NEAR) != (second[2] >= NEAR):
            share = (first[2] - NEAR) / (first[2] - second[2])
            kept.append(first + share * (second - first))
    points = np.array(kept).reshape(-1, 3)
    return points[:, :2] / points[:, 2:]


def _tint(image: np.ndarray, polygon: np.ndarray, colour: Colour, opacity: float) -> None:
    if len(polygon) < 3:
        return
    height, width = image.shape[:2]
    # Far outside the image OpenCV's fixed-point numbers overflow; the cut moves no visible edge noticeably.
    limit = 16.0 * max(height, width)
    points = (np.clip(polygon, -limit, limit) - 0.5).round().astype(np.int32)
    left, top = np.maximum(points.min(axis=0), 0)
    right, bottom = np.minimum(points.max(axis=0) + 1, (width, height))
    if left >= right or top >= bottom:
        return
    mask = np.zeros((bottom - top, right - left), dtype=np.uint8)
    cv2.fillPoly(mask, [points - (left, top)], 255)
    region = image[top:bottom, left:right]
    mixed = region + (np.array(colour) - region.astype(np.float32)) * opacity
    region[mask > 0] = mixed[mask > 0].round().astype(np.uint8)

"""The map painted onto the ground that a camera sees."""

from collections.abc import Mapping, Sequence

import numpy as np

from perception.structures import MAP_CLASSES, MapGrid
from perception.visualization.boxes_on_image import NEAR, project_segments
from perception.visualization.canvas import check_image, draw_segments
from perception.visualization.palette import MAP_COLOURS, TEXT, map_lookup

GROUND_Z = -1.84
"""Height of the ground in the LiDAR frame, metres: nuScenes' LiDAR is mounted 1.84 m above it."""


def draw_map_on_image(
    image: np.ndarray,
    lidar2img: np.ndarray,
    *,
    mask: np.ndarray | None = None,
    grid: MapGrid | None = None,
    polylines: Mapping[str, Sequence[np.ndarray]] | None = None,
    ground_z: float = GROUND_Z,
    class_names: tuple[str, ...] = MAP_CLASSES,
    opacity: float = 0.55,
    thickness: int = 2,
) -> np.ndarray:
    """A copy of the image with the map on the plane z = `ground_z`.

    A mask is painted pixel by pixel: each image pixel below the horizon looks up the ground point that it
    sees, so nothing behind the camera can appear. Polylines are cut at the image plane before projection.

    Args:
        image: (H, W, 3), uint8, BGR.
        lidar2img: (4, 4), to pixels of this image.
        mask: (rows, columns), int, map classes on `grid`.
        grid: the grid of the mask; the default `MapGrid` if None.
        polylines: per class name, a sequence of (k, 2) points, LiDAR frame, metres.
        ground_z: height of the ground, LiDAR frame, metres.
        class_names: names of the mask's classes, background first.
        opacity: of the paint, 0...1.
        thickness: of polylines, pixels.

    Returns:
        (H, W, 3), uint8, BGR.

    Raises:
        ValueError: the image is not (H, W, 3) uint8, or the mask does not lie on the grid.
    """
    check_image(image)
    image = image.copy()
    if mask is not None:
        _paint(image, lidar2img, mask, grid or MapGrid(), ground_z, map_lookup(class_names), opacity)
    for name, lines in (polylines or {}).items():
        for line in lines:
            points = np.column_stack([line, np.full(len(line), ground_z)])
            homogeneous = points @ lidar2img[:3, :3].T + lidar2img[:3, 3]
            segments = np.stack([homogeneous[:-1], homogeneous[1:]], axis=1)
            draw_segments(image, project_segments(segments), MAP_COLOURS.get(name, TEXT), thickness)
    return image


def _paint(
    image: np.ndarray,
    lidar2img: np.ndarray,
    mask: np.ndarray,
    grid: MapGrid,
    ground_z: float,
    lookup: np.ndarray,
    opacity: float,
) -> None:
    if mask.shape != grid.shape:
        raise ValueError(
            f"The map mask has shape {mask.shape}, its grid {grid.shape}. Pass the mask's own grid."
        )
    # Ground plane → image: homography of (x, y, 1).
    to_image = np.column_stack(
        [lidar2img[:3, 0], lidar2img[:3, 1], lidar2img[:3, 2] * ground_z + lidar2img[:3, 3]]
    )
    if abs(np.linalg.det(to_image)) < 1e-9:
        return  # the camera lies in the plane and sees it edge-on
    height, width = image.shape[:2]
    u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    ground = np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(to_image).T  # (H, W, 3)
    with np.errstate(divide="ignore", invalid="ignore"):
        xy = ground[..., :2] / ground[..., 2:]
        depth = 1.0 / ground[..., 2]
    is_ground = (depth > NEAR) & np.isfinite(xy).all(axis=-1)
    pixels = grid.lidar2pixels(np.where(is_ground[..., None], xy, 1e6))
    column, row = (
        np.floor(np.clip(pixels, -2.0, max(mask.shape) + 2.0) + 0.5).astype(np.int64).transpose(2, 0, 1)
    )
    is_inside = (row >= 0) & (row < mask.shape[0]) & (column >= 0) & (column < mask.shape[1])
    label = np.where(is_inside, mask[row.clip(0, mask.shape[0] - 1), column.clip(0, mask.shape[1] - 1)], 0)
    is_painted = (label > 0) & (label < len(lookup))
    colours = lookup[label[is_painted]].astype(np.float32)
    image[is_painted] = (image[is_painted] * (1 - opacity) + colours * opacity).round().astype(np.uint8)

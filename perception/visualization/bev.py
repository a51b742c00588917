"""The scene from above: rings, car, map and boxes with their headings; up is forward (+y)."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from perception.structures import MAP_CLASSES, MapGrid, box_corners
from perception.visualization.canvas import SUBPIXEL_BITS, blank, draw_segments, draw_text, to_fixed
from perception.visualization.palette import EGO, FAINT_TEXT, GRID, PANEL, Colour, map_lookup

_EGO_SIZE = (4.1, 1.7)
"""Length and width of nuScenes' car (a Renault Zoe), metres."""

_EGO_CENTRE_Y = 0.41
"""Centre of the car ahead of the LiDAR, metres: the LiDAR is 0.94 m ahead of the rear axle, the centre 1.35 m."""

_RING_STEP = 10.0


@dataclass(frozen=True)
class BEVView:
    """What a picture from above shows.

    Args:
        x_range: (min, max), LiDAR frame, metres.
        y_range: (min, max), LiDAR frame, metres.
        pixels_per_metre: scale.

    Example:
        >>> view = BEVView(x_range=(-10.0, 10.0), y_range=(-20.0, 20.0), pixels_per_metre=2.0)
        >>> view.shape, view.lidar2pixels(np.array([0.0, 20.0])).tolist()
        ((80, 40), [20.0, 0.0])
    """

    x_range: tuple[float, float] = (-51.2, 51.2)
    y_range: tuple[float, float] = (-51.2, 51.2)
    pixels_per_metre: float = 6.0

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the picture."""
        height = round((self.y_range[1] - self.y_range[0]) * self.pixels_per_metre)
        width = round((self.x_range[1] - self.x_range[0]) * self.pixels_per_metre)
        return height, width

    def lidar2pixels(self, xy: np.ndarray) -> np.ndarray:
        """Points (..., 2), metres → (..., 2), (column, row), pixels; the corner of the picture is (0, 0)."""
        column = (xy[..., 0] - self.x_range[0]) * self.pixels_per_metre
        row = (self.y_range[1] - xy[..., 1]) * self.pixels_per_metre
        return np.stack([column, row], axis=-1)

    def centres(self) -> np.ndarray:
        """(height, width, 2), metres: what each pixel's centre shows."""
        height, width = self.shape
        x = self.x_range[0] + (np.arange(width) + 0.5) / self.pixels_per_metre
        y = self.y_range[1] - (np.arange(height) + 0.5) / self.pixels_per_metre
        return np.stack(np.broadcast_arrays(x[None, :], y[:, None]), axis=-1)


def draw_bev(
    view: BEVView,
    boxes: np.ndarray,
    colours: Sequence[Colour],
    *,
    map_mask: np.ndarray | None = None,
    map_grid: MapGrid | None = None,
    map_classes: tuple[str, ...] = MAP_CLASSES,
    title: str = "",
    map_opacity: float = 0.65,
    fill: float = 0.35,
) -> np.ndarray:
    """Picture from above.

    Args:
        view: range and scale.
        boxes: (n, 7 or 9), LiDAR frame, bottom-centre; with velocities, the way of the next second is drawn.
        colours: (n,), BGR.
        map_mask: (rows, columns), int, on `map_grid`, painted under the boxes.
        map_grid: grid of the mask; the default `MapGrid` if None.
        map_classes: names of the mask's classes, background first.
        title: written into the corner.
        map_opacity: of the map, 0...1.
        fill: opacity of the boxes' insides, 0...1.

    Returns:
        (H, W, 3), uint8, BGR.

    Raises:
        ValueError: boxes and colours differ in number, or the mask does not lie on its grid.
    """
    boxes = np.asarray(boxes, dtype=np.float64)
    if len(boxes) != len(colours):
        raise ValueError(f"{len(boxes)} boxes but {len(colours)} colours.")
    image = blank(*view.shape, PANEL)
    if map_mask is not None:
        _paint_map(image, view, map_mask, map_grid or MapGrid(), map_lookup(map_classes), map_opacity)
    _draw_rings(image, view)
    _draw_ego(image, view)
    if len(boxes):
        _draw_boxes(image, view, boxes, colours, fill)
    if title:
        draw_text(image, title, (10, 8), size=15, bold=True)
    return image


def _paint_map(
    image: np.ndarray, view: BEVView, mask: np.ndarray, grid: MapGrid, lookup: np.ndarray, opacity: float
) -> None:
    if mask.shape != grid.shape:
        raise ValueError(
            f"The map mask has shape {mask.shape}, its grid {grid.shape}. Pass the mask's own grid."
        )
    pixels = np.floor(grid.lidar2pixels(view.centres()) + 0.5).astype(np.int64)
    column, row = pixels[..., 0], pixels[..., 1]
    is_inside = (row >= 0) & (row < mask.shape[0]) & (column >= 0) & (column < mask.shape[1])
    image[is_inside] = (image[is_inside] * 0.82).astype(np.uint8)  # shows which ground the map covers
    label = np.where(is_inside, mask[row.clip(0, mask.shape[0] - 1), column.clip(0, mask.shape[1] - 1)], 0)
    is_painted = (label > 0) & (label < len(lookup))
    colours = lookup[label[is_painted]].astype(np.float32)
    image[is_painted] = (image[is_painted] * (1 - opacity) + colours * opacity).round().astype(np.uint8)


def _draw_rings(image: np.ndarray, view: BEVView) -> None:
    centre = to_fixed(view.lidar2pixels(np.zeros(2)))
    farthest = np.hypot(max(map(abs, view.x_range)), max(map(abs, view.y_range)))
    for radius in np.arange(_RING_STEP, farthest, _RING_STEP):
        size = round(radius * view.pixels_per_metre * (1 << SUBPIXEL_BITS))
        cv2.circle(image, tuple(centre), size, GRID, 1, cv2.LINE_AA, SUBPIXEL_BITS)
        if radius % (2 * _RING_STEP) == 0 and radius < view.y_range[1] - 2:
            x, y = view.lidar2pixels(np.array([0.0, radius]))
            draw_text(image, f"{radius:.0f} m", (x + 4, y + 3), size=10, colour=FAINT_TEXT)
    axes = [
        [[view.x_range[0], 0.0], [view.x_range[1], 0.0]],
        [[0.0, view.y_range[0]], [0.0, view.y_range[1]]],
    ]
    draw_segments(image, view.lidar2pixels(np.array(axes)), GRID)


def _draw_ego(image: np.ndarray, view: BEVView) -> None:
    length, width = (size / 2 for size in _EGO_SIZE)
    outline = np.array([[-1, -1], [-1, 0.55], [-0.6, 1], [0.6, 1], [1, 0.55], [1, -1]]) * (width, length)
    points = to_fixed(view.lidar2pixels(outline + (0.0, _EGO_CENTRE_Y)))
    cv2.fillPoly(image, [points], EGO, cv2.LINE_AA, SUBPIXEL_BITS)


def _draw_boxes(
    image: np.ndarray, view: BEVView, boxes: np.ndarray, colours: Sequence[Colour], fill: float
) -> None:
    corners = box_corners(torch.from_numpy(boxes)).numpy()[
        :, [0, 3, 7, 4], :2
    ]  # (n, 4, 2), rear pair then front pair
    outlines = view.lidar2pixels(corners)
    limit = 4.0 * max(view.shape)
    tinted = image.copy()
    for outline, colour in zip(outlines, colours, strict=True):
        cv2.fillPoly(tinted, [to_fixed(outline.clip(-limit, limit))], colour, cv2.LINE_AA, SUBPIXEL_BITS)
    cv2.addWeighted(tinted, fill, image, 1 - fill, 0, dst=image)
    for box, outline, colour in zip(boxes, outlines, colours, strict=True):
        draw_segments(image, np.stack([outline, np.roll(outline, -1, axis=0)], axis=1), colour)
        front = outline[2:].mean(axis=0)
        draw_segments(image, np.stack([outline.mean(axis=0), front])[None], colour)
        draw_segments(image, outline[2:][None], colour, thickness=2)
        if len(box) >= 9 and np.isfinite(box[7:9]).all() and np.hypot(*box[7:9]) > 0.5:
            tip = view.lidar2pixels(box[:2] + box[7:9])
            start = view.lidar2pixels(box[:2])
            draw_segments(image, np.stack([start, tip])[None], colour, dash=3.0)

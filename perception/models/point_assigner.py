"""Which box each location of a feature pyramid has to find, as FCOS assigns them.

Legend: P locations of all levels (level by level, row by row), n boxes of an image, m ignored boxes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_NO_BOX = float("inf")


@dataclass(frozen=True)
class Locations:
    """The cells' centres of all levels.

    points: (P, 2), x and y, pixels of the padded input image.
    strides: (P,), pixels.
    ranges: (P, 2), the least and the largest distance to a box's farthest side that a location may learn, pixels.
    level_sizes: number of locations per level.
    """

    points: Tensor
    strides: Tensor
    ranges: Tensor
    level_sizes: tuple[int, ...]


@dataclass(frozen=True)
class PointTargets:
    """What the locations of one image should say.

    labels: (P,), int64, class of the box; num_classes = background.
    distances: (P, 4), to the box's left, top, right and bottom, pixels; meaningless at background.
    is_ignored: (P,), bool, background inside an ignored box, which has no classification loss.
    """

    labels: Tensor
    distances: Tensor
    is_ignored: Tensor


def locate(
    shapes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    ranges: Sequence[tuple[float, float]],
    device: torch.device,
) -> Locations:
    """The locations of a pyramid.

    Args:
        shapes: (rows, columns) of each level.
        strides: of each level, pixels.
        ranges: of each level, pixels.
        device: where they are wanted.

    Example:
        >>> found = locate([(1, 2), (1, 1)], [8, 16], [(-1, 64), (64, 128)], torch.device("cpu"))
        >>> found.points.tolist(), found.strides.tolist(), found.level_sizes
        ([[4.0, 4.0], [12.0, 4.0], [8.0, 8.0]], [8.0, 8.0, 16.0], (2, 1))
    """
    points = []
    for (rows, columns), stride in zip(shapes, strides, strict=True):
        x = (torch.arange(columns, device=device) + 0.5) * stride
        y = (torch.arange(rows, device=device) + 0.5) * stride
        points.append(torch.stack([x.expand(rows, -1), y[:, None].expand(-1, columns)], dim=-1).flatten(0, 1))
    sizes = [len(part) for part in points]
    per_level = torch.tensor([[float(s), *r] for s, r in zip(strides, ranges, strict=True)], device=device)
    per_point = torch.cat(
        [row.expand(size, -1) for row, size in zip(per_level, sizes, strict=True)]
    )  # (P, 3)
    return Locations(torch.cat(points), per_point[:, 0], per_point[:, 1:], tuple(sizes))


def assign_points(
    locations: Locations,
    boxes: Tensor,
    labels: Tensor,
    ignored: Tensor,
    *,
    num_classes: int,
    center_radius: float,
) -> PointTargets:
    """Assign at most one box to each location.

    *Source*: FCOS (Tian et al., TPAMI 2020), §3.2 and its centre sampling. A location learns a box if it lies inside
    that box, within `center_radius` strides of its centre along both axes, and its distance to the box's farthest side
    is within its level's range, ends included; of several such boxes the one of least area. Ours: what then is
    background and lies inside an ignored box (a crowd, or a category that is not scored) counts neither as an object
    nor as background.

    Args:
        locations: P of them.
        boxes: (n, 4), x1, y1, x2, y2, pixels.
        labels: (n,), int64.
        ignored: (m, 4), as `boxes`.
        num_classes: label of the background.
        center_radius: in strides.
    """
    distances = _distances(locations.points, boxes)  # (P, n, 4)
    reach = (locations.strides * center_radius)[:, None, None]  # (P, 1, 1)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    is_central = ((locations.points[:, None] - centers).abs() < reach).all(dim=-1)  # (P, n)
    farthest = distances.amax(dim=-1)
    low, high = locations.ranges[:, :1], locations.ranges[:, 1:]
    fits = (distances.amin(dim=-1) > 0) & is_central & (farthest >= low) & (farthest <= high)
    background = torch.full((len(locations.points),), num_classes, dtype=torch.int64, device=boxes.device)
    is_ignored = (_distances(locations.points, ignored).amin(dim=-1) > 0).any(dim=1)
    if len(boxes) == 0:
        return PointTargets(background, boxes.new_zeros(len(background), 4), is_ignored)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=-1)
    area, box_idx = torch.where(fits, areas, _NO_BOX).min(dim=1)  # (P,)
    is_background = area == _NO_BOX
    chosen = distances[torch.arange(len(box_idx), device=box_idx.device), box_idx]
    return PointTargets(
        torch.where(is_background, background, labels[box_idx]), chosen, is_ignored & is_background
    )


def centerness(distances: Tensor) -> Tensor:
    """How central a location is in its box: 1 in the middle, 0 at the border.

    *Source*: FCOS, eq. 3.

    Args:
        distances: (..., 4), to left, top, right and bottom, any unit, above 0.

    Returns:
        (...), 0..1.

    Example:
        >>> centerness(torch.tensor([[2.0, 3.0, 2.0, 3.0], [1.0, 3.0, 4.0, 3.0]])).tolist()
        [1.0, 0.5]
    """
    sides = torch.stack([distances[..., 0::2], distances[..., 1::2]])  # (2, ..., 2)
    return (sides.amin(dim=-1) / sides.amax(dim=-1)).prod(dim=0).sqrt()


def _distances(points: Tensor, boxes: Tensor) -> Tensor:
    """(P, 2), (n, 4) → (P, n, 4), to left, top, right and bottom; below 0 outside."""
    points = points[:, None]
    return torch.cat([points - boxes[:, :2], boxes[:, 2:] - points], dim=-1)

"""Intersection of rotated rectangles.

Legend: P pairs, 24 candidate vertices = 16 crossings of edges + 4 + 4 corners.
"""

import torch
from torch import Tensor

_CHUNK = 1 << 16  # pairs at a time: about 150 MB of float64 intermediates
_EPS = 1e-9  # relative to the boxes' size; corners on the other box's edge count as inside


def rotated_intersection(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Area common to pairs of rectangles.

    The vertices of the common polygon are the crossings of edges and the corners inside the other rectangle;
    sorted by angle about their mean, they give the area by the shoelace formula. Computed in float64.

    Args:
        boxes1: (P, 5), (x, y, w, h, angle), angle in rad from x towards y, w along it.
        boxes2: (P, 5), the same.

    Returns:
        (P,) in boxes1's dtype.
    """
    area = boxes1.new_zeros(len(boxes1), dtype=torch.float64)
    reach = (boxes1[:, 2:4].norm(dim=1) + boxes2[:, 2:4].norm(dim=1)) / 2
    near = ((boxes1[:, :2] - boxes2[:, :2]).norm(dim=1) <= reach * 1.001).nonzero()[:, 0]
    for rows in near.split(_CHUNK):
        area[rows] = _intersection(boxes1[rows].double(), boxes2[rows].double())
    return area.to(boxes1.dtype)


def _intersection(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    centre = boxes1[:, :2]
    corners1 = _corners(boxes1[:, :2] - centre, boxes1)  # (P, 4, 2), about boxes1's centre: exact near it
    corners2 = _corners(boxes2[:, :2] - centre, boxes2)
    crossings, crosses = _edge_crossings(corners1, corners2)
    points = torch.cat((crossings, corners1, corners2), dim=1)  # (P, 24, 2)
    valid = torch.cat(
        (
            crosses,
            _contains(boxes2, boxes2[:, :2] - centre, corners1),
            _contains(boxes1, 0 * centre, corners2),
        ),
        dim=1,
    )  # (P, 24)

    count = valid.sum(1, keepdim=True)
    points = torch.where(valid[..., None], points, 0.0)
    points = torch.where(
        valid[..., None], points - points.sum(1, keepdim=True) / count.clamp(min=1)[..., None], 0.0
    )
    angle = torch.atan2(points[..., 1], points[..., 0]).where(valid, 10.0)  # the rest go behind pi
    order = angle.argsort(1)
    points = points.gather(1, order[..., None].expand(-1, -1, 2))
    # the places behind the last vertex repeat the first, so that the ring closes and adds nothing
    points = torch.where((torch.arange(24, device=points.device) < count)[..., None], points, points[:, :1])
    following = points.roll(-1, dims=1)
    area = (points[..., 0] * following[..., 1] - points[..., 1] * following[..., 0]).sum(1) / 2
    return area.clamp(min=0)


def _corners(centre: Tensor, boxes: Tensor) -> Tensor:
    """(P, 4, 2), going round."""
    half = boxes[:, None, 2:4] / 2 * boxes.new_tensor([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    cos, sin = boxes[:, 4:].cos(), boxes[:, 4:].sin()
    x, y = half.unbind(-1)
    return centre[:, None] + torch.stack((x * cos - y * sin, x * sin + y * cos), dim=-1)


def _edge_crossings(corners1: Tensor, corners2: Tensor) -> tuple[Tensor, Tensor]:
    """Points (P, 16, 2) where edges of the two meet, and which of them do (P, 16). Parallels never do."""
    start1, start2 = corners1[:, :, None], corners2[:, None]  # (P, 4, 1, 2), (P, 1, 4, 2)
    edge1, edge2 = corners1.roll(-1, 1)[:, :, None] - start1, corners2.roll(-1, 1)[:, None] - start2
    gap = start2 - start1
    denominator = _cross(edge1, edge2)
    parallel = denominator.abs() <= _EPS * edge1.norm(dim=-1) * edge2.norm(dim=-1)
    denominator = denominator.masked_fill(parallel, 1.0)
    along1, along2 = _cross(gap, edge2) / denominator, _cross(gap, edge1) / denominator
    crosses = ~parallel & (along1 >= 0) & (along1 <= 1) & (along2 >= 0) & (along2 <= 1)
    return (start1 + along1[..., None] * edge1).flatten(1, 2), crosses.flatten(1, 2)


def _contains(boxes: Tensor, centre: Tensor, points: Tensor) -> Tensor:
    offset = points - centre[:, None]
    cos, sin = boxes[:, 4:].cos(), boxes[:, 4:].sin()
    along = offset[..., 0] * cos + offset[..., 1] * sin
    across = offset[..., 1] * cos - offset[..., 0] * sin
    slack = _EPS * boxes[:, 2:4].sum(1, keepdim=True)
    return (along.abs() <= boxes[:, 2:3] / 2 + slack) & (across.abs() <= boxes[:, 3:4] / 2 + slack)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]

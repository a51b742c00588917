"""``points_in_boxes_*`` of ``mmcv._ext``.

Boxes are (x, y, z, l, w, h, yaw) with z at the bottom, yaw counter-clockwise from +x; a point on a vertical
face is outside, one on the top or the bottom face is inside.
"""

import torch
from torch import Tensor


def _inside(boxes: Tensor, points: Tensor) -> Tensor:
    """Boxes (..., T, 7), points (..., M, 3) -> bool (..., M, T)."""
    offset = points[..., :, None, :] - boxes[..., None, :, :3]  # (..., M, T, 3)
    cos, sin = boxes[..., None, :, 6].cos(), boxes[..., None, :, 6].sin()
    along = offset[..., 0] * cos + offset[..., 1] * sin
    across = offset[..., 1] * cos - offset[..., 0] * sin
    length, width, height = (boxes[..., None, :, 3:6] / 2).unbind(-1)
    return (along.abs() < length) & (across.abs() < width) & ((offset[..., 2] - height).abs() <= height)


def points_in_boxes_all_forward(boxes: Tensor, points: Tensor, box_idxs_of_pts: Tensor) -> None:
    """Sets box_idxs_of_pts (B, M, T) to 1 where the point lies in the box, else 0."""
    box_idxs_of_pts.copy_(_inside(boxes, points))


def points_in_boxes_cpu_forward(boxes: Tensor, points: Tensor, pts_indices: Tensor) -> None:
    """Sets pts_indices (T, M) of one sample to 1 where the point lies in the box, else 0."""
    pts_indices.copy_(_inside(boxes, points).transpose(0, 1))


def points_in_boxes_part_forward(boxes: Tensor, points: Tensor, box_idxs_of_pts: Tensor) -> None:
    """Sets box_idxs_of_pts (B, M) to the first box that holds the point; others keep their -1."""
    if boxes.shape[1] == 0:
        return
    found, first = _inside(boxes, points).int().max(dim=-1)  # max returns the first of equal values
    box_idxs_of_pts.copy_(torch.where(found.bool(), first.to(box_idxs_of_pts.dtype), box_idxs_of_pts))

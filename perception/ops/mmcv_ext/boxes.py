"""``bbox_overlaps``, ``box_iou_rotated`` and ``iou3d_boxes_overlap_bev_forward`` of ``mmcv._ext``."""

import torch
from torch import Tensor

from perception.ops.mmcv_ext.rotated import rotated_intersection


def axis_aligned_iou(boxes1: Tensor, boxes2: Tensor, *, offset: int = 0, iof: bool = False) -> Tensor:
    """IoU of boxes (..., 4) as (x1, y1, x2, y2), broadcast; ``iof`` divides by the first box's area alone.

    offset: 1 counts both border pixels, as integer pixel boxes once did; 0 is geometry.
    """
    top_left = torch.maximum(boxes1[..., :2], boxes2[..., :2])
    bottom_right = torch.minimum(boxes1[..., 2:], boxes2[..., 2:])
    overlap = (bottom_right - top_left + offset).clamp(min=0).prod(-1)
    area1 = (boxes1[..., 2:] - boxes1[..., :2] + offset).prod(-1)
    if iof:
        return overlap / area1
    return overlap / (area1 + (boxes2[..., 2:] - boxes2[..., :2] + offset).prod(-1) - overlap)


def rotated_iou(boxes1: Tensor, boxes2: Tensor, *, iof: bool = False) -> Tensor:
    """IoU (P,) of pairs of boxes (P, 5), (x, y, w, h, angle in rad, x towards y); 0 if one is empty."""
    overlap = rotated_intersection(boxes1, boxes2)
    area1, area2 = boxes1[:, 2] * boxes1[:, 3], boxes2[:, 2] * boxes2[:, 3]
    union = area1 if iof else area1 + area2 - overlap
    has_area = (area1 >= 1e-14) & (area2 >= 1e-14)
    return torch.where(has_area, overlap / union.where(has_area, torch.ones_like(union)), 0.0)


def bbox_overlaps(
    bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int
) -> None:
    """Writes IoU (mode 0) or intersection over the first box (mode 1) to ious (N, M), or (N,) if aligned."""
    first = bboxes1 if aligned else bboxes1[:, None]
    ious.copy_(axis_aligned_iou(first, bboxes2, offset=offset, iof=mode == 1))


def box_iou_rotated(bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode_flag: int, aligned: bool) -> None:
    """Writes into ious (N * M,), or (N,) if aligned; mode_flag as ``mode`` of :func:`bbox_overlaps`."""
    if not aligned:
        bboxes1, bboxes2 = _all_pairs(bboxes1, bboxes2)
    ious.view(-1).copy_(rotated_iou(bboxes1, bboxes2, iof=mode_flag == 1))


def iou3d_boxes_overlap_bev_forward(boxes_a: Tensor, boxes_b: Tensor, ans_overlap: Tensor) -> None:
    """Writes the overlap (M, N), in square metres, of boxes (x, y, z, l, w, h, yaw) seen from above."""
    first, second = _all_pairs(boxes_a[:, [0, 1, 3, 4, 6]], boxes_b[:, [0, 1, 3, 4, 6]])
    ans_overlap.view(-1).copy_(rotated_intersection(first, second))


def _all_pairs(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    rows, cols = len(boxes1), len(boxes2)
    return boxes1.repeat_interleave(rows and cols, dim=0), boxes2.repeat(rows, 1)

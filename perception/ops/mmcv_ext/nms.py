"""``nms``, ``softnms``, ``nms_match``, ``nms_rotated`` and the ``iou3d_nms3d*`` of ``mmcv._ext``.

All are greedy: the best remaining box is kept and removes those that overlap it too much. The step in Python
per kept box is what makes them slower than the compiled ones, not the arithmetic; `nms` has the least of it.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from perception.ops.mmcv_ext.boxes import axis_aligned_iou, rotated_iou

_BLOCK = 256
_Suppress = Callable[
    [Tensor, Tensor], Tensor
]  # (index of the kept box, indices of the rest) -> bool, True = remove


def _greedy(order: Tensor, suppress: _Suppress) -> list[Tensor]:
    """One index tensor per kept box: the box itself, then those that it removed, best first."""
    groups = []
    while order.numel():
        best, rest = order[0], order[1:]
        removed = suppress(best, rest)
        groups.append(torch.cat((order[:1], rest[removed])))
        order = rest[~removed]
    return groups


def _kept(groups: list[Tensor], like: Tensor) -> Tensor:
    if not groups:
        return torch.empty(0, dtype=torch.long, device=like.device)
    return torch.stack([group[0] for group in groups])


def nms(bboxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the kept boxes (x1, y1, x2, y2), by falling score; IoU above the threshold removes.

    IoUs are computed in blocks of rows on the boxes' device, and read one row per kept box on the CPU.
    """
    order = scores.argsort(descending=True)
    ranked = bboxes[order]
    is_left = np.ones(len(order), dtype=bool)
    for start in range(0, len(order), _BLOCK):
        overlaps = axis_aligned_iou(ranked[start : start + _BLOCK, None], ranked[start:], offset=offset)
        removes = (overlaps > iou_threshold).cpu().numpy()
        for row, found in enumerate(removes):
            if is_left[start + row]:
                is_left[start + row + 1 :] &= ~found[row + 1 :]
    return order[torch.from_numpy(is_left).to(order.device)]


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Groups of indices into dets (N, 5): a kept box and those it removed (IoU at or above the threshold)."""
    boxes, order = dets[:, :4], dets[:, 4].argsort(descending=True)
    groups = _greedy(order, lambda i, rest: axis_aligned_iou(boxes[i], boxes[rest]) >= iou_threshold)
    return [group.tolist() for group in groups]


def nms_rotated(
    dets: Tensor,
    scores: Tensor,
    order: Tensor,
    dets_sorted: Tensor,
    labels: Tensor,
    iou_threshold: float,
    multi_label: bool,
) -> Tensor:
    """Indices of the kept boxes dets (N, 5 or 6) = (x, y, w, h, angle[, label]), by falling score.

    With ``multi_label`` boxes of different labels leave each other alone, as in mmcv's CUDA version (its CPU
    version ignores the labels).
    """

    def suppress(best: Tensor, rest: Tensor) -> Tensor:
        removed = rotated_iou(dets[best, :5].expand(len(rest), 5), dets[rest, :5]) > iou_threshold
        return removed & (labels[rest] == labels[best]) if multi_label else removed

    return _kept(_greedy(order, suppress), dets)


def iou3d_nms3d_forward(boxes: Tensor, keep: Tensor, keep_num: Tensor, nms_overlap_thresh: float) -> None:
    """Boxes (N, 7) by falling score; writes the kept indices to the front of keep, the count to keep_num."""
    flat = boxes[:, [0, 1, 3, 4, 6]]
    order = torch.arange(len(boxes), device=boxes.device)
    groups = _greedy(
        order, lambda i, rest: rotated_iou(flat[i].expand(len(rest), 5), flat[rest]) > nms_overlap_thresh
    )
    _write_kept(_kept(groups, boxes), keep, keep_num)


def iou3d_nms3d_normal_forward(
    boxes: Tensor, keep: Tensor, keep_num: Tensor, nms_overlap_thresh: float
) -> None:
    """As :func:`iou3d_nms3d_forward`, with every yaw taken as 0."""
    corners = torch.cat((boxes[:, :2] - boxes[:, 3:5] / 2, boxes[:, :2] + boxes[:, 3:5] / 2), dim=1)
    order = torch.arange(len(boxes), device=boxes.device)
    groups = _greedy(order, lambda i, rest: axis_aligned_iou(corners[i], corners[rest]) > nms_overlap_thresh)
    _write_kept(_kept(groups, boxes), keep, keep_num)


def _write_kept(kept: Tensor, keep: Tensor, keep_num: Tensor) -> None:
    keep[: len(kept)] = kept
    keep_num.fill_(len(kept))


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Indices of the kept boxes; writes (x1, y1, x2, y2, lowered score) to the front of dets (N, 5).

    Source: Bodla et al., Soft-NMS (2017), eq. 3 (linear) and the Gaussian one after it.

    method: 0 removes, 1 lowers the score by 1 - IoU (both from iou_threshold on), 2 by exp(-IoU^2 / sigma).
    """
    left, lowered = torch.arange(len(boxes), device=boxes.device), scores.clone()
    kept: list[Tensor] = []
    while left.numel():
        best = left[lowered[left].argmax()]
        dets[len(kept), :4], dets[len(kept), 4] = boxes[best], lowered[best]
        kept.append(best)
        left = left[left != best]
        iou = axis_aligned_iou(boxes[best], boxes[left], offset=offset)
        if method == 2:
            factor = (-(iou**2) / sigma).exp()
        else:
            factor = torch.where(iou >= iou_threshold, 1 - iou if method == 1 else 0.0, 1.0)
        lowered[left] *= factor
        left = left[lowered[left] >= min_score]
    return torch.stack(kept) if kept else torch.empty(0, dtype=torch.long, device=boxes.device)

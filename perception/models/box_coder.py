"""From raw regression outputs to box codes, and from scored codes to boxes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from perception.models._layers import at_least_float, inverse_sigmoid
from perception.structures import CODE_SIZE, decode_boxes

CENTRE = (0, 1, 4)
"""Channels of the box code that hold cx, cy, cz."""

LOG_SIZE = (2, 3, 5)
"""Channels of the box code that hold log l, log w, log h."""

_MAX_LOG_SIZE = math.log(1e3)
_LOWEST_THRESHOLD = 0.01


def refine_centres(raw: Tensor, reference_points: Tensor) -> Tensor:
    """Move reference points by the centre channels of a regression output.

    Args:
        raw: (..., 10), output of a regression branch.
        reference_points: (..., 3), (x, y, z) as a fraction of the range.

    Returns:
        (..., 3), in 0..1, at least float32.
    """
    delta = at_least_float(raw)[..., CENTRE]
    return (delta + inverse_sigmoid(at_least_float(reference_points))).sigmoid()


def to_code(raw: Tensor, centres: Tensor, pc_range: Tensor) -> Tensor:
    """Put centres in metres into a regression output.

    Args:
        raw: (..., 10), output of a regression branch.
        centres: (..., 3), (x, y, z) as a fraction of the range.
        pc_range: (6,), metres.

    Returns:
        (..., 10): (cx, cy, log l, log w, cz, log h, sin yaw, cos yaw, vx, vy), metres, gravity centre.
    """
    raw = at_least_float(raw)
    metres = centres * (pc_range[3:] - pc_range[:3]) + pc_range[:3]
    return torch.cat([metres[..., :2], raw[..., 2:4], metres[..., 2:], raw[..., 5:]], dim=-1)


@dataclass(frozen=True)
class DecodedBoxes:
    """Boxes of one sample, best first.

    boxes: (n, 9), bottom-centre, LiDAR frame, metres.
    scores: (n,), 0..1.
    labels: (n,), int64.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class BoxCoder:
    """Decoding without non-maximum suppression.

    *Source*: DETR3D's `NMSFreeCoder`: the best `max_num` of all query × class scores (a query may appear with several
    classes), kept if the gravity centre lies within `post_center_range`. Deviation: sizes are held between a millimetre
    and a kilometre, so that a model which diverges still has boxes; and boxes that are not finite are kept, for the
    metric to count.

    Args:
        post_center_range: (x_min, y_min, z_min, x_max, y_max, z_max), metres.
        max_num: boxes per sample at most.
        score_threshold: boxes must score more; None keeps all.
        lower_threshold: where no box does, lower the threshold by tenths until one does, as upstream; below 0.01 all
            are kept.
    """

    def __init__(
        self,
        *,
        post_center_range: Sequence[float],
        max_num: int = 300,
        score_threshold: float | None = None,
        lower_threshold: bool = False,
    ) -> None:
        if len(post_center_range) != 6:
            raise ValueError(f"post_center_range must have 6 numbers, got {list(post_center_range)}.")
        self.post_center_range = tuple(post_center_range)
        self.max_num = max_num
        self.score_threshold = score_threshold
        self.lower_threshold = lower_threshold

    def decode(self, cls_scores: Tensor, codes: Tensor) -> DecodedBoxes:
        """Decode one sample.

        Args:
            cls_scores: (Q, num_classes), logits.
            codes: (Q, 10), as `to_code` returns them.
        """
        boxes, scores, labels, keep = self.rank(cls_scores, codes)
        return DecodedBoxes(boxes[keep], scores[keep], labels[keep])

    def rank(self, cls_scores: Tensor, codes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The best `max_num` of any number of samples, those to be dropped still among them.

        Args:
            cls_scores: (..., Q, num_classes), logits.
            codes: (..., Q, 10), as `to_code` returns them.

        Returns:
            boxes (..., n, 9), scores, labels and, as bool, which to keep (..., n); as `DecodedBoxes`.
        """
        num_classes = cls_scores.shape[-1]
        all_scores = at_least_float(cls_scores).sigmoid().flatten(-2)
        scores, flat_idx = all_scores.topk(min(self.max_num, all_scores.shape[-1]))
        query_idx = (flat_idx // num_classes)[..., None]
        code = codes.gather(-2, query_idx.expand(*flat_idx.shape, codes.shape[-1]))
        centre = code[..., CENTRE]
        limits = code.new_tensor(self.post_center_range)
        keep = ((centre >= limits[:3]) & (centre <= limits[3:])).all(dim=-1)
        if self.score_threshold is not None:
            keep &= self._scores_enough(scores, self.score_threshold)
        keep |= ~(code.isfinite().all(dim=-1) & scores.isfinite())
        bound = code.new_tensor([_MAX_LOG_SIZE if i in LOG_SIZE else math.inf for i in range(CODE_SIZE)])
        return decode_boxes(code.clamp(-bound, bound)), scores, flat_idx % num_classes, keep

    def _scores_enough(self, scores: Tensor, threshold: float) -> Tensor:
        enough = scores > threshold
        while self.lower_threshold and not bool(enough.any()):
            threshold *= 0.9
            enough = scores >= threshold if threshold >= _LOWEST_THRESHOLD else torch.ones_like(enough)
        return enough

"""Losses of the box head: focal classification, L1 of the box code, L1 of the velocity."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

VELOCITY = slice(8, 10)
"""Channels of the box code that hold vx, vy."""


def focal_loss(logits: Tensor, targets: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal loss, not reduced.

    *Source*: Lin et al., Focal Loss for Dense Object Detection, eq. 5.

    Args:
        logits: any shape.
        targets: same shape, 0 or 1.
        alpha: weight of the positives; negatives weigh 1 − alpha.
        gamma: focusing exponent.

    Returns:
        Same shape.

    Example:
        >>> round(float(focal_loss(torch.zeros(1), torch.ones(1))), 5)  # 0.25 · 0.5² · ln 2
        0.04332
    """
    prob = logits.sigmoid()
    missed = torch.where(targets > 0, 1 - prob, prob)
    weight = torch.where(targets > 0, alpha, 1 - alpha) * missed**gamma
    return weight * F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none")


@dataclass(frozen=True)
class MatchedTargets:
    """What the queries of one decoder layer (all samples, all groups) should say.

    labels: (B, Q), int64, class of the matched box; num_classes = background.
    codes: (B, Q, 10), code of the matched box; 0 for background, velocity NaN where unknown.
    matched: (B, Q), bool.
    """

    labels: Tensor
    codes: Tensor
    matched: Tensor


@dataclass(frozen=True)
class LayerLosses:
    """Losses of one decoder layer; box and velocity are None without a target.

    cls, box, velocity: 0-dim.
    num_boxes: 0-dim, matched queries; `cls` is divided by at least 1.
    num_velocities: 0-dim, matched queries whose target has a velocity.
    """

    cls: Tensor
    box: Tensor | None
    velocity: Tensor | None
    num_boxes: Tensor
    num_velocities: Tensor


def layer_losses(
    cls_scores: Tensor,
    codes: Tensor,
    targets: MatchedTargets,
    code_weights: Tensor,
    *,
    cls_weight: float,
    box_weight: float,
    drop_unknown_velocity: bool = False,
) -> LayerLosses:
    """Losses of one decoder layer.

    *Source*: `loss_single` of BEVFormer: each sum is divided by the number of matched queries, ≥ 1. Deviations: the
    velocity is a loss of its own, and an unknown velocity drops only itself (upstream: the whole box, which then still
    counts in the number of matched queries).

    Args:
        cls_scores: (B, Q, num_classes), logits.
        codes: (B, Q, 10), predicted codes.
        targets: what they should be.
        code_weights: (10,).
        cls_weight: factor of the focal loss.
        box_weight: factor of both L1 losses.
        drop_unknown_velocity: do as upstream does.
    """
    matched = targets.matched
    num_boxes = matched.sum()
    one_hot = F.one_hot(targets.labels, cls_scores.shape[-1] + 1)[..., :-1]
    cls = focal_loss(cls_scores.float(), one_hot).sum() / num_boxes.clamp(min=1) * cls_weight

    wanted = targets.codes[matched]  # (n, 10)
    if len(wanted) == 0:
        return LayerLosses(cls, None, None, num_boxes, num_boxes)
    error = (codes[matched] - wanted.nan_to_num()).abs() * code_weights  # (n, 10)
    known = wanted[:, VELOCITY].isfinite()  # (n, 2)
    num_velocities = known.any(dim=-1).sum()
    if drop_unknown_velocity:
        error = error * known.all(dim=-1, keepdim=True)
        num_velocities = num_boxes
    box = error[:, : VELOCITY.start].sum() / num_boxes * box_weight
    velocity = None
    if num_velocities > 0:
        velocity = (error[:, VELOCITY] * known).sum() / num_velocities * box_weight
    return LayerLosses(cls, box, velocity, num_boxes, num_velocities)

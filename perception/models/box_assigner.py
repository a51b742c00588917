"""One-to-one matching of queries to ground-truth boxes.

Legend: A any leading axes (layers, groups), q queries, G ground-truth boxes.
"""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

MATCHED_CODE = 8
"""Code channels that count in the matching cost: all but the velocity."""

_WORST = 1e9


class HungarianAssigner:
    """Cheapest one-to-one matching by class and box cost.

    *Source*: `HungarianAssigner3D` of BEVFormer: focal-loss cost plus L1 over the first eight channels (no velocity,
    no IoU).

    Args:
        cls_weight: factor of the class cost.
        box_weight: factor of the box cost.
        alpha: focal loss's.
        gamma: focal loss's.
    """

    def __init__(
        self,
        *,
        cls_weight: float = 2.0,
        box_weight: float = 0.25,
        alpha: float = 0.25,
        gamma: float = 2.0,
    ) -> None:
        self.cls_weight = cls_weight
        self.box_weight = box_weight
        self.alpha = alpha
        self.gamma = gamma

    def cls_cost(self, cls_scores: Tensor, gt_labels: Tensor) -> Tensor:
        """Focal loss as positive minus as negative: (..., q, num_classes) logits, (G,) → (..., q, G)."""
        prob = cls_scores.sigmoid()
        negative = -(1 - prob + 1e-12).log() * (1 - self.alpha) * prob**self.gamma
        positive = -(prob + 1e-12).log() * self.alpha * (1 - prob) ** self.gamma
        return (positive - negative)[..., gt_labels] * self.cls_weight

    def box_cost(self, codes: Tensor, gt_codes: Tensor) -> Tensor:
        """L1 distance of the first eight channels: (..., q, 10), (G, 10) → (..., q, G)."""
        targets = gt_codes[:, :MATCHED_CODE].expand(*codes.shape[:-2], -1, -1)
        return torch.cdist(codes[..., :MATCHED_CODE], targets, p=1) * self.box_weight

    @torch.no_grad()
    def assign(
        self, cls_scores: Tensor, codes: Tensor, gt_codes: Tensor, gt_labels: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        """Match every leading slice on its own.

        A prediction that is not finite costs the most, so it is matched all the same and its loss is not finite: what
        becomes of the step is the optimiser wrapper's decision.

        Args:
            cls_scores: (A, q, num_classes), logits.
            codes: (A, q, 10), predicted codes, metres.
            gt_codes: (G, 10); velocity may be NaN.
            gt_labels: (G,), int64.

        Returns:
            A pairs (query_idx, gt_idx), int64, of length min(q, G), sorted by query.

        Raises:
            ValueError: a ground-truth box is not finite.
        """
        if not bool(gt_codes[:, :MATCHED_CODE].isfinite().all()):
            raise ValueError(
                "a ground-truth box holds NaN or inf, or a size that is not positive, so it cannot be matched. "
                "Repair or filter it."
            )
        cost = self.cls_cost(cls_scores.float(), gt_labels) + self.box_cost(codes.float(), gt_codes.float())
        matrices = cost.nan_to_num(nan=_WORST, posinf=_WORST, neginf=-_WORST).cpu().numpy()
        pairs = [linear_sum_assignment(matrix) for matrix in matrices]
        return [
            (torch.from_numpy(query).to(cost.device), torch.from_numpy(target).to(cost.device))
            for query, target in pairs
        ]

"""The weighted geometric mean of the losses, by the exact identity for its gradient."""

import torch
from torch import Tensor

from perception.balancing._checks import check_range
from perception.balancing.component import Component, Convention


class GeometricMean(Component):
    """Coefficients of the gradient of prod_t L_t^w_t: c_t = P w_t / L_t with P the product.

    *Source*: AMTL, Eq. 5 (GLS with even weights). The losses are detached means of the global batch, so the update is
    the gradient of the global objective (a product of one rank's losses is not), and one backward serves.
    *Deviations*: the exponents are those of the present tasks and sum to 1. A loss at or below `floor` times the
    largest leaves the product as an absent task does and keeps the coefficient P w_t / (floor * largest): else a loss
    of 0 would stop every other task (P = 0) and its own coefficient would be infinite.

    Args:
        floor: smallest share of the largest loss that counts.

    Raises:
        ValueError: when called, a loss is negative.

    Example:
        >>> GeometricMean().coefficients(torch.tensor([1.0, 4.0]), torch.tensor([0.5, 0.5]))
        tensor([1.0000, 0.2500], dtype=torch.float64)
    """

    convention: Convention = "mean"
    scale_heads = True
    needs_gram = False

    def __init__(self, *, floor: float = 1e-6) -> None:
        check_range("floor", floor, 0.0, 1.0, is_open=True)
        self.floor = floor

    def coefficients(self, losses: Tensor, weights: Tensor) -> Tensor:
        """Coefficients (T',) float64 of the present tasks' gradients.

        Args:
            losses: (T',) detached global losses of the present tasks, at least 0.
            weights: (T',) at least 0; scaled here to sum to 1.
        """
        losses, weights = losses.detach().double().cpu(), weights.double().cpu()
        if bool((losses < 0).any()):
            raise ValueError(
                f"the geometric mean needs losses of at least 0; found {losses.tolist()}. "
                "Use combination 'sum', or a loss that cannot be negative"
            )
        total = float(weights.sum())
        weights = weights / total if total > 0 else torch.full_like(weights, 1 / len(weights))
        lowest = self.floor * losses.max()
        if float(lowest) == 0:
            return weights
        is_counted = (losses > lowest) & (weights > 0)
        share = float(weights[is_counted].sum())
        mean = (
            torch.exp((weights[is_counted] * losses[is_counted].log()).sum() / share) if share > 0 else lowest
        )
        return mean * weights / losses.clamp(min=lowest)

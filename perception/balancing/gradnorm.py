"""GradNorm: weights under which the task gradients have fitting norms."""

from typing import Any

import torch
from torch import Tensor

from perception.balancing._checks import check_range
from perception.balancing.component import Component, Setting
from perception.balancing.loss_weighting import LossWeighting
from perception.balancing.masked_adam import MaskedAdam

_SMALLEST = 1e-3


class GradNormWeights(LossWeighting):
    """Learns weights so that the norm of w_i g_i is the mean norm times the task's inverse training rate^alpha.

    *Source*: Chen et al. 2018, Eqs. 1–2 and Algorithm 1: L_grad = sum_i | ||w_i g_i|| - mean_j ||w_j g_j|| r_i^alpha |
    with r_i = (L_i / L_i(0)) / mean_j (L_j / L_j(0)), the target held constant; then the weights are scaled to sum to
    T. The norms are the square roots of the Gram matrix's diagonal: the paper takes the last shared layer, here it is
    what the optimiser wrapper collects. *Deviations*: weights stay above 1e-3 (the paper's can become negative); L_i(0)
    is the first loss seen; the present tasks' weights are scaled to sum to their number.

    Args:
        alpha: strength of the pull to a common rate; 1.5 in the paper on NYUv2, 0.12 in its toy problem.
        lr: of the weights.

    Raises:
        ValueError: a negative argument.
    """

    needs_gram = True
    state_names = ("raw", "first_losses", "gradients", "num_seen")

    def __init__(self, *, alpha: float = 1.5, lr: float = 0.025) -> None:
        check_range("alpha", alpha, 0.0)
        self.alpha = alpha
        self.adam = MaskedAdam(lr=lr)
        self.raw = self.first_losses = self.gradients = self.num_seen = torch.zeros(0, dtype=torch.float64)

    def parts(self) -> tuple[Component, ...]:
        """The Adam."""
        return (self.adam,)

    def setup(self, setting: Setting) -> None:
        """Weights of 1."""
        super().setup(setting)
        self.gradients, self.num_seen = torch.zeros(2, len(setting.task_names), dtype=torch.float64)
        self.raw = torch.ones_like(self.gradients)
        self.first_losses = torch.full_like(self.gradients, torch.nan)

    def end_step(self) -> None:
        """Let the weights of the tasks seen since the last step take theirs, and scale them."""
        super().end_step()
        active = self.num_seen > 0
        raw = self.adam.stepped(self.raw, self.gradients / self.num_seen.clamp(min=1), active).clamp(
            min=_SMALLEST
        )
        self.raw = raw * len(raw) / raw.sum()
        self.gradients, self.num_seen = torch.zeros_like(raw), torch.zeros_like(raw)

    def report(self) -> dict[str, Any]:
        """The learned weights."""
        return {"gradnorm": dict(zip(self.task_names, self.raw.tolist(), strict=True))}

    def observe(self, losses: Tensor, present: Tensor, weights: Tensor, gram: Tensor | None) -> None:
        """Add up the gradient of L_grad with respect to the present tasks' weights."""
        if gram is None:
            raise ValueError("GradNorm needs the Gram matrix of the weighted task gradients")
        task_idx = present.nonzero().flatten().cpu()
        values = losses.detach().double().cpu()
        self.first_losses = torch.where(present.cpu() & self.first_losses.isnan(), values, self.first_losses)
        norms = gram.detach().double().cpu().diagonal().clamp(min=0).sqrt()[task_idx]
        tiny = torch.finfo(torch.float64).tiny
        rates = values[task_idx].clamp(min=0) / self.first_losses[task_idx].clamp(min=tiny)
        targets = norms.mean() * (rates / rates.mean().clamp(min=tiny)) ** self.alpha
        # || w g || grows with w by || g ||.
        slopes = torch.sign(norms - targets) * norms / weights[task_idx].clamp(min=tiny)
        gradients, seen = self.gradients.clone(), self.num_seen.clone()
        gradients[task_idx] += slopes
        seen[task_idx] += 1
        self.gradients, self.num_seen = gradients, seen

    def _weights(self, losses: Tensor, task_idx: Tensor) -> Tensor:
        raw = self.raw[task_idx]
        return raw * len(raw) / raw.sum()

"""Gradient vaccine (GradVac)."""

from typing import Any

import torch
from torch import Tensor
from torchjd.aggregation import GradVacWeighting

from perception.balancing._random import global_draws_from
from perception.balancing.component import Setting
from perception.balancing.gram_weighting import GramWeighting, scale_of

# A target of exactly 1 has no finite correction.
_LARGEST_TARGET = 1 - 1e-6


class _TargetedGradVac(GradVacWeighting):
    """TorchJD's, whose targets can be set: it neither saves nor loads them."""

    def solve(self, gram: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients (T,) and new targets (T, T) from G and the old targets."""
        self._phi_t = targets.clone()
        self._state_key = (len(gram), gram.dtype)
        return self(gram), self._phi_t


class VaccineWeighting(GramWeighting):
    """Turns gradients until each pair has at least the cosine that it had on average so far.

    *Source*: Wang et al. 2021, Algorithm 1, TorchJD's `GradVacWeighting`; convention "sum". The moving averages of the
    cosines are kept per pair of tasks and saved; those of absent tasks rest. *Deviation*: they stay within
    ±(1 - 1e-6).

    Args:
        beta: weight of a new cosine in its moving average.

    Raises:
        ValueError: `beta` outside [0, 1].
    """

    state_names = ("targets",)

    def __init__(self, *, beta: float = 0.5) -> None:
        super().__init__()
        self._inner = _TargetedGradVac(beta=beta, eps=1e-30)
        self.targets = torch.zeros(0, 0, dtype=torch.float64)

    def setup(self, setting: Setting) -> None:
        """Targets of 0, where the method is PCGrad."""
        super().setup(setting)
        self.targets = torch.zeros(len(setting.task_names), len(setting.task_names), dtype=torch.float64)

    def report(self) -> dict[str, Any]:
        """The targets, row by row."""
        return {"targets": self.targets.tolist()}

    def _solve(self, gram: Tensor, task_idx: Tensor) -> Tensor:
        if not len(self.targets):
            self.targets = torch.zeros_like(gram)
        rows, columns = task_idx[:, None], task_idx[None]
        with global_draws_from(self.generator):
            coefficients, targets = self._inner.solve(gram / scale_of(gram), self.targets[rows, columns])
        updated = self.targets.clone()
        updated[rows, columns] = targets.clamp(-_LARGEST_TARGET, _LARGEST_TARGET)
        self.targets = updated
        return coefficients

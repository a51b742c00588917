"""Gradient sign dropout (GradDrop): one sign per element of the update."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchjd.aggregation import GradDrop

from perception.balancing._checks import check_range, check_task_names
from perception.balancing._random import global_draws_from
from perception.balancing.component import Convention
from perception.balancing.loss_weighting import LossWeighting
from perception.balancing.multi_task_balancer import MultiTaskBalancer


class GradDropBalancer(MultiTaskBalancer):
    """Draws a sign per element of the gradient, by how much of it is positive, and drops the others' parts.

    *Source*: Chen et al. 2020, Algorithm 1, lines 10–15, TorchJD's `GradDrop`, on parameters; convention "sum". It
    needs every element's signs, so the optimiser wrapper calls `combine_block` parameter by parameter: always in the
    same order, as each call draws its seed from the balancer's generator. On shards draw on every rank for the same
    parameter; the shards' masks are then drawn from one seed.

    Args:
        leak: task → share of its gradient that always passes, in [0, 1]; a task left out has 0.
        weighting: loss weights, by default 1.
        scales: as in `MultiTaskBalancer`.
        convention: as in `MultiTaskBalancer`.
        scale_heads: whether parameters of a single task go through `combine_block` too (nothing is dropped there).

    Raises:
        ValueError: a leak outside [0, 1]; at `setup`, an unknown task.
    """

    needs_gradients = True

    def __init__(
        self,
        *,
        leak: Mapping[str, float] | None = None,
        weighting: LossWeighting | None = None,
        scales: Mapping[str, float] | None = None,
        convention: Convention | None = None,
        scale_heads: bool | None = None,
    ) -> None:
        super().__init__(weighting=weighting, scales=scales, convention=convention, scale_heads=scale_heads)
        for task, value in (leak or {}).items():
            check_range(f"leak of task {task!r}", value, 0.0, 1.0)
        self.leak = dict(leak or {})

    def setup(self, *args: Any, **kwargs: Any) -> None:
        """As the base class; checks the names of `leak` too."""
        super().setup(*args, **kwargs)
        check_task_names(self.leak, self.task_names, "leak")

    def combine_block(self, gradients: Tensor, present: Tensor) -> Tensor:
        """The update (...) of one parameter from its gradients (T, ...), which are weighted and 0 where absent."""
        rows = present.nonzero().flatten().tolist()
        shape = gradients.shape[1:]
        if not rows:
            return gradients.new_zeros(shape)
        matrix = gradients[rows].flatten(1)
        coefficients = self._last["coefficients"][rows].to(matrix)
        matrix = matrix * coefficients[:, None]
        if len(rows) == 1:
            return matrix[0].reshape(shape)
        leak = torch.tensor([self.leak.get(self.task_names[row], 0.0) for row in rows]).to(matrix)
        with global_draws_from(self.generator, gradients.device):
            return GradDrop(leak=leak)(matrix).reshape(shape)

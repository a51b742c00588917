"""Gradient sign dropout (GradDrop): one sign per element of the update."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchjd.aggregation import GradDrop

from perception.balancing._checks import check_range, check_task_names
from perception.balancing._random import draw_seed, global_draws_of
from perception.balancing.component import Convention
from perception.balancing.loss_weighting import LossWeighting
from perception.balancing.multi_task_balancer import MultiTaskBalancer
from perception.utils import stable_seed


class GradDropBalancer(MultiTaskBalancer):
    """Draws a sign per element of the gradient, by how much of it is positive, and drops the others' parts.

    *Source*: Chen et al. 2020, Algorithm 1, lines 10–15, TorchJD's `GradDrop`, on parameters; convention "sum". An
    element's sign is drawn for its place in the row of all parameters: each update draws one seed, the same on all
    ranks, from which each block of elements has its own. So a rank that holds a part of the elements draws for them
    what one that holds all would.

    Args:
        leak: task → share of its gradient that always passes, in [0, 1]; a task left out has 0.
        weighting: loss weights, by default 1.
        scales: as in `MultiTaskBalancer`.
        convention: as in `MultiTaskBalancer`.
        scale_heads: whether elements of a single task go through `combine_block` too (nothing is dropped there).

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

    def combine(self, losses: Tensor, present: Tensor, gram: Tensor | None) -> Tensor:
        """As the base class; draws the update's seed."""
        self._seed = draw_seed(self.generator)
        return super().combine(losses, present, gram)

    def combine_block(self, gradients: Tensor, present: Tensor, number: int) -> Tensor:
        """The update (B,) of a block of elements from their gradients (T, B); see the base class."""
        rows = present.nonzero().flatten().tolist()
        if not rows:
            return torch.zeros_like(gradients[0])
        matrix = gradients[rows]
        coefficients = self._last["coefficients"][rows].to(matrix)
        matrix = matrix * coefficients[:, None]
        if len(rows) == 1:
            return matrix[0]
        leak = torch.tensor([self.leak.get(self.task_names[row], 0.0) for row in rows]).to(matrix)
        with global_draws_of(stable_seed(self._seed, number), gradients.device):
            return GradDrop(leak=leak)(matrix)

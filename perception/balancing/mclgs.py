"""Multi-task curriculum learning by gradient similarity (MCLGS)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from perception.balancing.component import Component
from perception.balancing.gram_weighting import GramWeighting, cosines


class MCLGSWeighting(GramWeighting):
    """Weighs pairs of tasks by how similar their gradients are, less and less as training goes on.

    *Source*: Igarashi et al., "Multi-task Curriculum Learning Based on Gradient Similarity", Algorithm 1 and Eqs. 3–6:
    w_kj = tanh(p(t) cos(g_k, g_j)) + 1, c_k = 1/(N(N-1)) sum_{j≠k} w_kj. Convention "mean"; the heads are scaled too
    (g_i is the gradient of the shared and the task's own parameters). A task whose gradient is 0 counts as orthogonal.
    With two tasks both get w_12 / 2: only the step size changes, and Adam takes that back (the paper uses SGD).

    Args:
        pacing: p(t), from optimiser steps counted from 0 to a number; `num_steps` counts them.

    Example:
        >>> from perception.balancing.pacing import LinearPacing
        >>> MCLGSWeighting(LinearPacing(0, 0))(torch.eye(4))
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """

    convention = "mean"
    scale_heads = True

    def __init__(self, pacing: Callable[[int], float]) -> None:
        super().__init__()
        if not callable(pacing):
            raise TypeError(
                f"pacing is {pacing!r}; it must be callable: optimiser step -> p(t), like LinearPacing"
            )
        self.pacing = pacing

    def parts(self) -> tuple[Component, ...]:
        """The pacing, where it takes part in the life cycle."""
        return (self.pacing,) if isinstance(self.pacing, Component) else ()

    def report(self) -> dict[str, Any]:
        """p(t) of the next step."""
        return {"pacing": float(self.pacing(self.num_steps))}

    def _solve(self, gram: Tensor, task_idx: Tensor) -> Tensor:
        num_tasks = len(gram)
        weights = torch.tanh(self.pacing(self.num_steps) * cosines(gram)) + 1
        weights.fill_diagonal_(0)
        return weights.sum(1) / (num_tasks * (num_tasks - 1))

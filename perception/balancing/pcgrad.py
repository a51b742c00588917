"""Projection of conflicting gradients (PCGrad)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from perception.balancing._random import global_draws_from
from perception.balancing.gram_weighting import GramWeighting, scale_of


class PCGradWeighting(GramWeighting):
    """Projects each gradient onto the normal planes of the others with which it conflicts, in random order.

    *Source*: Yu et al., "Gradient Surgery for Multi-Task Learning" (2020), Algorithm 1; convention "sum". With i's
    coefficients c = e_i at first, for each other j in its order: m = g_j · Σ_k c_k g_k < 0 gives c_j -= m / |g_j|². The
    same coefficients from the same draws as TorchJD's `PCGradWeighting`, which does not tell what it projected.

    Example:
        >>> gram = torch.tensor([[1.0, -1.0], [-1.0, 4.0]])
        >>> PCGradWeighting().weights_for_orders(gram, [[1], [0]])
        tensor([2.0000, 1.2500])
    """

    def __init__(self) -> None:
        super().__init__()
        self._projected: list[list[str]] = []

    def weights_for_orders(self, gramian: Tensor, orders: Sequence[Sequence[int]]) -> Tensor:
        """Coefficients (T,) where task i meets the others in `orders[i]`, without drawing."""
        return self._project(gramian.detach().to("cpu", torch.float64), orders)[0].to(gramian)

    def report(self) -> dict[str, Any]:
        """`projected`: pairs of tasks, whose gradient lost its part against whose."""
        return {"projected": self._projected}

    def _solve(self, gram: Tensor, task_idx: Tensor) -> Tensor:
        with global_draws_from(self.generator):
            orders = [torch.randperm(len(gram)).tolist() for _ in range(len(gram))]
        coefficients, pairs = self._project(gram / scale_of(gram), orders)
        names = [self._name(int(task)) for task in task_idx]
        self._projected = [[names[task], names[other]] for task, other in pairs]
        return coefficients

    @staticmethod
    def _project(gram: Tensor, orders: Sequence[Sequence[int]]) -> tuple[Tensor, list[tuple[int, int]]]:
        combinations = torch.eye(len(gram), dtype=torch.float64)
        pairs = []
        for task, order in enumerate(orders):
            for other in order:
                product = float(gram[other] @ combinations[task])
                if other != task and product < 0:  # then |g_other| > 0
                    combinations[task, other] -= product / float(gram[other, other])
                    pairs.append((task, other))
        return combinations.sum(0), pairs

"""Gram methods: from the inner products of the task gradients to one coefficient per task."""

from abc import abstractmethod

import torch
from torch import Tensor
from torchjd.aggregation import Weighting

from perception.balancing.component import Component, Convention


class GramWeighting(Component, Weighting):
    """Base of our Gram methods, callable like TorchJD's: G (T, T) → c (T,), the update being the sum of c_t g_t.

    The work is done in float64 on the CPU; the result has the dtype and device of G. One task gets c = 1.

    Attributes:
        convention: "sum" if tasks without conflict get c = 1 each, "mean" if they get 1/T; as in the method's paper.
        scale_heads: as `Balancer.scale_heads`.

    Raises:
        ValueError: G is not square or not finite.
    """

    convention: Convention = "sum"
    scale_heads: bool = False

    def __init__(self) -> None:
        super().__init__()
        self._task_idx: Tensor | None = None

    def forward(self, gramian: Tensor, /) -> Tensor:
        """Coefficients (T,) for the Gram matrix (T, T)."""
        if gramian.ndim != 2 or gramian.shape[0] != gramian.shape[1] or len(gramian) == 0:
            raise ValueError(f"a Gram matrix is square, (T, T); found shape {tuple(gramian.shape)}")
        gram = gramian.detach().to("cpu", torch.float64)
        task_idx = torch.arange(len(gram)) if self._task_idx is None else self._task_idx
        if not bool(gram.isfinite().all()):
            bad = [self._name(int(task_idx[row])) for row in (~gram.isfinite()).all(1).nonzero().flatten()]
            raise ValueError(
                f"the Gram matrix is not finite (tasks {bad or 'unknown'}): a task gradient overflowed or is NaN. "
                "Check the losses, lower the learning rate, or train in fp32"
            )
        if len(gram) == 1:
            return torch.ones_like(gramian[0])
        return self._solve(gram, task_idx).to(gramian)

    def masked(self, gramian: Tensor, present: Tensor) -> Tensor:
        """Coefficients (T,) of the sub-problem of the present tasks; 0 for absent ones.

        Args:
            gramian: (T, T); rows of absent tasks are not looked at.
            present: (T,) bool.
        """
        task_idx = present.nonzero().flatten()
        out = torch.zeros_like(gramian[0])
        if len(task_idx):
            self._task_idx = task_idx.cpu()
            try:
                out[task_idx] = self(gramian[task_idx][:, task_idx])
            finally:
                self._task_idx = None
        return out

    @abstractmethod
    def _solve(self, gram: Tensor, task_idx: Tensor) -> Tensor:
        # gram: (T', T') float64 of T' >= 2 present tasks; task_idx: (T',) their numbers; returns (T',).
        ...

    def _name(self, task: int) -> str:
        return self.task_names[task] if self.task_names else str(task)


def scale_of(gram: Tensor) -> float:
    """Mean squared norm of the task gradients, by which a Gram matrix can be divided; 1 if all are 0."""
    scale = float(gram.diagonal().mean())
    return scale if scale > 0 else 1.0


def cosines(gram: Tensor) -> Tensor:
    """Cosine similarities (T, T) from a Gram matrix; 0 where a gradient is 0.

    Example:
        >>> cosines(torch.tensor([[4.0, -1.0], [-1.0, 1.0]]))[0, 1]
        tensor(-0.5000)
    """
    norms = gram.diagonal().clamp(min=0).sqrt()
    inverse = torch.where(norms > 0, 1 / norms, torch.zeros_like(norms))
    return (gram * inverse[:, None] * inverse).clamp(-1, 1)

"""Loss weightings: from the task losses to one weight per task."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from perception.balancing._checks import check_positive, check_task_names
from perception.balancing.component import Component, Convention, Setting


class LossWeighting(Component):
    """Weight 1 for each task, and the base of the other loss weightings.

    Attributes:
        convention: "sum" if equal tasks get weight 1 each, "mean" if they get 1/T; as in the method's paper.
        needs_gram: whether `observe` wants the Gram matrix.
    """

    convention: Convention = "sum"
    needs_gram: bool = False

    def weights(self, losses: Tensor, present: Tensor) -> Tensor:
        """Weights (T,) float64 of the sub-problem of the present tasks; 0 for absent ones.

        Args:
            losses: (T,) scaled global losses, detached.
            present: (T,) bool.
        """
        task_idx = present.nonzero().flatten().cpu()
        out = torch.zeros(len(losses), dtype=torch.float64)
        if len(task_idx):
            out[task_idx] = self._weights(losses.detach().double().cpu()[task_idx], task_idx)
        return out

    def observe(self, losses: Tensor, present: Tensor, weights: Tensor, gram: Tensor | None) -> None:
        """See what came of the weights.

        Args:
            losses: (T,) as in `weights`.
            present: (T,) bool.
            weights: (T,) what `weights` returned for this batch.
            gram: (T, T) of the weighted gradients if `needs_gram`.
        """

    def _weights(self, losses: Tensor, task_idx: Tensor) -> Tensor:
        # losses: (T',) float64 of the present tasks; task_idx: (T',) their numbers; returns (T',).
        return torch.ones_like(losses)


class ConstantWeights(LossWeighting):
    """Fixed weights.

    Args:
        weights: task → weight above 0, one for each task.

    Raises:
        ValueError: a weight is not above 0; at `setup`, the tasks are others.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        check_positive(weights, "the weight")
        self.constants = dict(weights)

    def setup(self, setting: Setting) -> None:
        """Check the names."""
        super().setup(setting)
        check_task_names(self.constants, self.task_names, "weights", is_complete=True)

    def _weights(self, losses: Tensor, task_idx: Tensor) -> Tensor:
        values = [self.constants[name] for name in self.task_names]
        return torch.tensor(values, dtype=torch.float64)[task_idx]


def scalarizer_weights(scalarizer: Callable[[Tensor], Tensor], losses: Tensor) -> Tensor:
    """Weights that a scalarizer of TorchJD's kind gives to the losses: its gradient.

    Args:
        scalarizer: losses (T,) → 0-dim loss.
        losses: (T,).

    Returns:
        (T,) d scalarizer / d losses, which is what back-propagation through it multiplies each task's gradient by.

    Example:
        >>> from torchjd.scalarization import GeometricMean
        >>> scalarizer_weights(GeometricMean(), torch.tensor([1.0, 4.0]))
        tensor([1.0000, 0.2500])
    """
    values = losses.detach().clone().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(scalarizer(values), values)
    return gradient

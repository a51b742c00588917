"""The seam between task losses and one update: weigh the losses, then combine the gradients.

Every method ends in one coefficient per task, the update being the sum of c_t g_t: the plain sum with c = 1, a
geometric mean by the exact identity for its gradient, a Gram method from the inner products of the task gradients. So
the
optimiser wrapper needs to know one thing about a method: whether it wants the Gram matrix.
"""

from typing import Any

import torch
from torch import Tensor


class Balancer:
    """The plain sum, and the base of every other method.

    Shapes: T is the number of declared tasks; vectors are in the order of `TaskLosses.task_names`. All inputs are the
    same on every rank: losses of the global batch, detached.

    Attributes:
        needs_gram: whether `combine` wants the Gram matrix of the weighted task gradients.
    """

    needs_gram: bool = False

    def weigh(self, losses: Tensor, present: Tensor) -> Tensor:
        """Weight of each task's loss.

        Args:
            losses: (T,) global losses, 0 where absent.
            present: (T,) bool, whether the task has a target in the global batch.

        Returns:
            (T,) weights; those of absent tasks are not used.
        """
        return torch.ones_like(losses)

    def combine(self, losses: Tensor, present: Tensor, gram: Tensor | None) -> Tensor:
        """Coefficient of each weighted task gradient in the update.

        Args:
            losses: (T,) weighted global losses, 0 where absent.
            present: (T,) bool.
            gram: (T, T) inner products of the weighted global task gradients if `needs_gram`, else None.

        Returns:
            (T,) coefficients.
        """
        return torch.ones_like(losses)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and JSON-able values that a resume needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned.

        Raises:
            ValueError: the state belongs to another method.
        """
        if state:
            raise ValueError(
                f"{type(self).__name__} keeps no state, but the checkpoint has {sorted(state)}. "
                "Resume with the balancer that wrote it"
            )

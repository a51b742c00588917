"""Adam on one number per task, of which some rest."""

import torch
from torch import Tensor

from perception.balancing._checks import check_range
from perception.balancing.component import Component, Setting


class MaskedAdam(Component):
    """Adam for a vector (T,), with its own step count per task: a task that is absent keeps value and moments.

    *Source*: Kingma and Ba 2015, with L2 regularisation as in `torch.optim.Adam`.

    Args:
        lr: learning rate.
        weight_decay: factor of the value that is added to its gradient.
        betas: decay of the moments.

    Raises:
        ValueError: a negative argument.
    """

    state_names = ("first", "second", "counts")

    def __init__(
        self, *, lr: float, weight_decay: float = 0.0, betas: tuple[float, float] = (0.9, 0.999)
    ) -> None:
        check_range("lr", lr, 0.0)
        check_range("weight_decay", weight_decay, 0.0)
        self.lr = lr
        self.weight_decay = weight_decay
        self.betas = betas
        self.first = self.second = self.counts = torch.zeros(0, dtype=torch.float64)

    def setup(self, setting: Setting) -> None:
        """Moments of 0 for each task."""
        super().setup(setting)
        self.first, self.second, self.counts = torch.zeros(3, len(setting.task_names), dtype=torch.float64)

    def stepped(self, values: Tensor, gradients: Tensor, active: Tensor) -> Tensor:
        """The values (T,) after one step along `gradients` (T,) where `active` (T,) bool, as they were elsewhere."""
        gradients = gradients + self.weight_decay * values
        beta1, beta2 = self.betas
        counts = self.counts + active
        first = torch.where(active, beta1 * self.first + (1 - beta1) * gradients, self.first)
        second = torch.where(active, beta2 * self.second + (1 - beta2) * gradients**2, self.second)
        self.first, self.second, self.counts = first, second, counts
        mean = first / (1 - beta1**counts)
        spread = (second / (1 - beta2**counts)).sqrt()
        return torch.where(active, values - self.lr * mean / (spread + 1e-8), values)

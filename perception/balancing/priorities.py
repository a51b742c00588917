"""Which task keeps its gradient when tasks conflict: probabilities for wPCGrad's anchors."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from perception.balancing._checks import check_task_names
from perception.balancing.component import Component


class Priority(Component):
    """Base of the priorities. wPCGrad takes any object with `probabilities`.

    Attributes:
        num_epochs: of the run that it takes where none was told to it, as when wPCGrad is called without `setup`.
    """

    num_epochs: int = 1

    @abstractmethod
    def probabilities(self) -> Tensor:
        """(T,) float64, at least 0, summing to 1."""


class UniformPriority(Priority):
    """Every task alike.

    Args:
        num_tasks: number of tasks, if the priority is used without `setup`.

    Example:
        >>> UniformPriority(2).probabilities().tolist()
        [0.5, 0.5]
    """

    def __init__(self, num_tasks: int | None = None) -> None:
        self._num_tasks = num_tasks

    def probabilities(self) -> Tensor:
        """(T,) float64, all 1/T.

        Raises:
            ValueError: neither `num_tasks` nor `setup` has said how many tasks there are.
        """
        num_tasks = len(self.task_names) or self._num_tasks
        if not num_tasks:
            raise ValueError("UniformPriority does not know its tasks; call setup, or give num_tasks")
        return torch.full((num_tasks,), 1 / num_tasks, dtype=torch.float64)


def as_probabilities(
    values: Mapping[str, float] | Sequence[float] | Tensor, task_names: Sequence[str], what: str
) -> Tensor:
    """Probabilities of the tasks as a checked vector.

    Args:
        values: task → probability (a task left out has 0), or one number per task in their order.
        task_names: the tasks.
        what: how an error names the values.

    Returns:
        (T,) float64, scaled so that the sum is 1 to the last digit.

    Raises:
        ValueError: an unknown task, a wrong count, a value outside [0, 1], or a sum that is off by more than 1e-6.
    """
    if isinstance(values, Mapping):
        check_task_names(values, task_names, what)
        vector = torch.tensor([float(values.get(name, 0.0)) for name in task_names], dtype=torch.float64)
    else:
        vector = torch.as_tensor(values, dtype=torch.float64).detach().cpu().flatten()
    if len(vector) != len(task_names):
        raise ValueError(
            f"{what} has {len(vector)} values for the {len(task_names)} tasks {list(task_names)}"
        )
    if not bool(((vector >= 0) & (vector <= 1)).all()):
        raise ValueError(f"{what} is {vector.tolist()}; every probability must lie in [0, 1]")
    if abs(float(vector.sum()) - 1) > 1e-6:
        raise ValueError(
            f"{what} is {vector.tolist()}, which sums to {float(vector.sum()):g}; it must sum to 1"
        )
    return vector / vector.sum()

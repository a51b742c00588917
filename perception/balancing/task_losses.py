"""What a model hands to the optimiser wrapper: one loss per task, and how many targets each counts."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor


class TaskLosses(Mapping[str, Tensor]):
    """Losses of the tasks that the local batch measures.

    A task without anything to measure is absent, not zero: a zero would enter Gram matrices and geometric means as if
    it had been measured.

    Args:
        losses: task → 0-dim loss, already divided by max(num_targets, 1).
        num_targets: task → 0-dim number of targets in the local batch. A loss may exist without a target (0): the
            classification of a batch without boxes, where every query is background. Ranks multiply their losses by
            max(num_targets, 1) and divide the sum by the clamped *sum* of counts, which is the joined batch's loss.
        task_names: every task that the model declares, in the order of the Gram matrix's rows.

    Raises:
        ValueError: a loss or a count names an undeclared task, or a loss has no count.

    Example:
        >>> losses = TaskLosses({"det": torch.tensor(2.0)}, {"det": torch.tensor(4.0)}, ("det", "seg"))
        >>> losses.present
        (True, False)
    """

    def __init__(
        self, losses: Mapping[str, Tensor], num_targets: Mapping[str, Tensor], task_names: tuple[str, ...]
    ) -> None:
        undeclared = sorted((set(losses) | set(num_targets)) - set(task_names))
        if undeclared:
            raise ValueError(
                f"losses name tasks {undeclared} that the model does not declare (task_names = {list(task_names)}). "
                "The text before the first dot of a loss key is its task: 'cls.d0.loss_focal', not 'd0.loss_cls'."
            )
        uncounted = sorted(set(losses) - set(num_targets))
        if uncounted:
            raise ValueError(
                f"tasks {uncounted} have a loss but no '<task>.num_targets' in the loss dict; ranks need the number "
                "to weight their losses."
            )
        self.task_names = task_names
        self._losses = {task: losses[task] for task in task_names if task in losses}
        self.num_targets = {task: num_targets[task] for task in self._losses}

    def __getitem__(self, task: str) -> Tensor:
        return self._losses[task]

    def __iter__(self) -> Iterator[str]:
        return iter(self._losses)

    def __len__(self) -> int:
        return len(self._losses)

    @property
    def present(self) -> tuple[bool, ...]:
        """Which of `task_names` has a loss here, in their order."""
        return tuple(task in self._losses for task in self.task_names)

    def total(self) -> Tensor:
        """The plain sum, 0-dim: what one rank alone minimises without a balancing method.

        Raises:
            ValueError: no task has a loss.
        """
        if not self._losses:
            raise ValueError(
                f"no task of {list(self.task_names)} has a target in this batch, so there is no loss."
            )
        return torch.stack([loss.reshape(()) for loss in self._losses.values()]).sum()

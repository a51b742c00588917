"""What a model hands to the optimiser wrapper: one loss per task, and how many targets each counts."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor


def task_of(part: str) -> str:
    """The task to which a part of the losses belongs: the text before the first dot."""
    return part.partition(".")[0]


class TaskLosses(Mapping[str, Tensor]):
    """Losses of the tasks that the local batch measures.

    A task without anything to measure is absent, not zero: a zero would enter Gram matrices and geometric means as if
    it had been measured.

    A task whose terms are means over different things (boxes and pixels, labels and pseudo labels) has a part for each
    of them, with a count of its own; the task's loss is the sum of its parts. Ranks then average every part by its
    own count, and so get the joined batch's loss exactly.

    Args:
        losses: part → 0-dim loss, already divided by its count, or by 1 where that is 0. A part is a task, or reads
            "<task>.<name>".
        num_targets: part → 0-dim count in the local batch: a number of targets, or a sum of their weights. A loss may
            exist without a target (0): the classification of a batch without boxes, where every query is background.
            Ranks multiply their losses by what they divided them by and divide the sum by the *sum* of counts.
        task_names: every task that the model declares, in the order of the Gram matrix's rows.
        part_names: every part that it declares, the same on all ranks; None: each task is one part.

    Raises:
        ValueError: a loss or a count names an undeclared part, a loss has no count, or a part belongs to no task.

    Example:
        >>> losses = TaskLosses({"det": torch.tensor(2.0)}, {"det": torch.tensor(4.0)}, ("det", "seg"))
        >>> losses.present
        (True, False)
        >>> parts = {"det": torch.tensor(2.0), "det.boxes": torch.tensor(3.0)}
        >>> counts = {"det": torch.tensor(4.0), "det.boxes": torch.tensor(0.5)}
        >>> float(TaskLosses(parts, counts, ("det", "seg"), ("det", "det.boxes", "seg"))["det"])
        5.0
    """

    def __init__(
        self,
        losses: Mapping[str, Tensor],
        num_targets: Mapping[str, Tensor],
        task_names: tuple[str, ...],
        part_names: tuple[str, ...] | None = None,
    ) -> None:
        self.task_names = task_names
        self.part_names = task_names if part_names is None else part_names
        self.part_tasks = tuple(task_of(part) for part in self.part_names)
        stray = sorted(set(self.part_tasks) - set(task_names))
        if stray:
            raise ValueError(
                f"part_names name tasks {stray} that are not in task_names = {list(task_names)}."
            )
        undeclared = sorted((set(losses) | set(num_targets)) - set(self.part_names))
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
        self.parts = {part: losses[part] for part in self.part_names if part in losses}
        self.num_targets = {part: num_targets[part] for part in self.parts}
        self._losses: dict[str, Tensor] = {}
        for task in task_names:
            found = [loss.reshape(()) for part, loss in self.parts.items() if task_of(part) == task]
            if found:
                self._losses[task] = sum(found[1:], start=found[0])

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

"""From a model's flat loss dict to losses per task and log values."""

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor

from perception.balancing import TaskLosses

COUNT = "num_targets"


def group_losses(
    losses: Mapping[str, Tensor], task_names: tuple[str, ...]
) -> tuple[TaskLosses, "OrderedDict[str, Tensor]"]:
    """Sum the terms of each task; the text before the first dot of a key is its task.

    Args:
        losses: "cls.loss_focal", "cls.d0.loss_focal", … 0-dim or to be averaged, and "cls.num_targets".
        task_names: the declared tasks.

    Returns:
        The task losses, and for the log each loss term and "loss", their plain sum.

    Raises:
        ValueError: a key has no task, names an undeclared one, or is neither a loss nor a count.

    Example:
        >>> import torch
        >>> one = torch.ones(())
        >>> tasks, log = group_losses({"seg.loss_ce": one, "seg.loss_dice": one, "seg.num_targets": one}, ("seg",))
        >>> float(tasks["seg"]), list(log)
        (2.0, ['seg.loss_ce', 'seg.loss_dice', 'loss'])
    """
    totals: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    log_vars: OrderedDict[str, Tensor] = OrderedDict()
    for key, value in losses.items():
        task, _, rest = key.partition(".")
        name = rest.rpartition(".")[2]
        if rest == COUNT:
            counts[task] = value
        elif name.startswith("loss_"):
            term = value.mean()
            totals[task] = totals[task] + term if task in totals else term
            log_vars[key] = term.detach()
        else:
            raise ValueError(
                f"loss key {key!r} must read '<task>.[…]loss_<name>' or '<task>.{COUNT}' with a task of "
                f"{list(task_names)}."
            )
    task_losses = TaskLosses(totals, counts, task_names)
    if totals:
        log_vars["loss"] = sum(value.detach() for value in totals.values())
    return task_losses, log_vars

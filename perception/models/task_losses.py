"""From a model's flat loss dict to losses per task and log values."""

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor

from perception.balancing import TaskLosses

COUNT = "num_targets"


def group_losses(
    losses: Mapping[str, Tensor], task_names: tuple[str, ...], part_names: tuple[str, ...] | None = None
) -> tuple[TaskLosses, "OrderedDict[str, Tensor]"]:
    """Sum the terms of each task, or of each part; the text before the first dot of a key is its task.

    A term belongs to the longest declared part with which its key begins: with the parts "det" and "det.loss_giou" the
    key "det.loss_giou" has a count of its own, and "det.loss_focal" that of "det".

    Args:
        losses: "cls.loss_focal", "cls.d0.loss_focal", … 0-dim or to be averaged, and "cls.num_targets".
        task_names: the declared tasks.
        part_names: the declared parts, see `TaskLosses`; None: each task is one.

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
    known = task_names if part_names is None else part_names
    totals: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    log_vars: OrderedDict[str, Tensor] = OrderedDict()
    for key, value in losses.items():
        task, _, rest = key.partition(".")
        path, _, name = key.rpartition(".")
        if rest and name == COUNT:
            counts[path] = value
        elif rest and name.startswith("loss_"):
            term = value.mean()
            part = _part_of(key, known) or task
            totals[part] = totals[part] + term if part in totals else term
            log_vars[key] = term.detach()
        else:
            raise ValueError(
                f"loss key {key!r} must read '<task>.[…]loss_<name>' or '<task>.{COUNT}' with a task of "
                f"{list(task_names)}."
            )
    task_losses = TaskLosses(totals, counts, task_names, part_names)
    if totals:
        log_vars["loss"] = sum(value.detach() for value in totals.values())
    return task_losses, log_vars


def _part_of(key: str, part_names: tuple[str, ...]) -> str | None:
    found = [part for part in part_names if key == part or key.startswith(f"{part}.")]
    return max(found, key=len, default=None)

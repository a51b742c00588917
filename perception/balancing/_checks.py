"""Checks of arguments that name tasks."""

import math
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from perception.utils import did_you_mean


def check_task_names(
    found: Iterable[str], task_names: Sequence[str], what: str, *, is_complete: bool = False
) -> None:
    """Refuse names of tasks that the model does not have, and with `is_complete` also missing ones.

    Raises:
        ValueError: names the first wrong task, the known ones and what was meant.
    """
    found = list(found)
    for name in found:
        if name not in task_names:
            raise ValueError(
                f"{what} names the unknown task {name!r}.{did_you_mean(name, task_names)} "
                f"The model's tasks are {list(task_names)}"
            )
    missing = [name for name in task_names if name not in found]
    if is_complete and missing:
        raise ValueError(f"{what} lacks the tasks {missing}; give a value for each of {list(task_names)}")


def check_positive(values: Mapping[str, float], what: str) -> None:
    """Refuse values that are not finite and above 0.

    Raises:
        ValueError: names the task and its value.
    """
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{what} of task {name!r} is {value}; it must be a finite number above 0")


def check_range(
    name: str, value: float, low: float, high: float = math.inf, *, is_open: bool = False
) -> None:
    """Refuse a number outside [low, high], or outside (low, high] with `is_open`.

    Raises:
        ValueError: names the argument, its value and the allowed range.
    """
    if not (low < value if is_open else low <= value) or not value <= high or not math.isfinite(value):
        raise ValueError(
            f"{name} is {value}; allowed: {'above' if is_open else 'from'} {low:g} up to {high:g}"
        )


def check_heads_read_apart(model: nn.Module, method: str) -> None:
    """Refuse a model that says that all its tasks read the shared features by the same modules.

    Raises:
        ValueError: its `heads_read_apart` is False.
    """
    if not getattr(model, "heads_read_apart", True):
        raise ValueError(
            f"{method} gives each head its own version of the shared features, but in this {type(model).__name__} one "
            "decoder reads them for all tasks. Use a model with a head per group of tasks (for BEVFormer a SegHead), "
            "or another method"
        )

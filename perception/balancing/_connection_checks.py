"""What connection strength asks of groups, norms and layers (other methods: of groups), checked before training."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from perception.balancing._checks import check_task_names
from perception.balancing.connections import LAYERS, Connection, is_all_norms
from perception.balancing.task_copies import check_tasks, task_copies
from perception.utils import name_some


def check_groups(groups: Mapping[str, Sequence[str]], task_names: Sequence[str] | None = None) -> None:
    """Each task in exactly one of at least two groups; of the model's tasks, if these are known.

    Raises:
        ValueError: otherwise.
    """
    if len(groups) < 2:
        raise ValueError(
            f"a method for groups of tasks needs at least two groups; got {dict(groups)}. Give groups "
            "such as dict(det=('cls', 'box', 'velocity'), seg=('seg',))"
        )
    check_tasks(tuple(groups))
    for group, tasks in groups.items():
        if isinstance(tasks, str) or not tasks:
            raise ValueError(f"group {group!r} must be a sequence of task names, got {tasks!r}")
    listed = [task for tasks in groups.values() for task in tasks]
    twice = sorted({task for task in listed if listed.count(task) > 1})
    if twice:
        raise ValueError(f"tasks {twice} are in more than one group of {dict(groups)}; each belongs to one")
    if task_names is None:
        return
    check_task_names(listed, task_names, "groups")
    missing = [task for task in task_names if task not in listed]
    if missing:
        raise ValueError(f"the model's tasks {missing} are in no group of {dict(groups)}; add them to one")


def check_norms(model: nn.Module, tasks: Sequence[str]) -> None:
    """Task-specific norms of these tasks, with trainable scales; batch norms with running statistics.

    Raises:
        ValueError: otherwise.
    """
    norms = {name: layer for name, layer in task_copies(model).items() if is_all_norms(layer)}
    if not norms:
        raise ValueError(
            f"{type(model).__name__} has no task-specific norm; connection strength trains the model that "
            "ConnectionStrength.prepare returns"
        )
    for name, layer in norms.items():
        if layer.tasks != tuple(tasks):
            raise ValueError(
                f"norm {name!r} has the tasks {list(layer.tasks)}, expected {list(tasks)} in this order"
            )
    copies = {name: next(iter(layer.values())) for name, layer in norms.items()}
    _refuse(
        (name for name, norm in copies.items() if norm.weight is None or not norm.weight.requires_grad),
        "have no trainable scale, so all tasks would stay equally strong",
        "Build them affine and with requires_grad=True, and freeze no stage of the trunk",
    )
    _refuse(
        (name for name, norm in copies.items() if isinstance(norm, _BatchNorm) and norm.running_var is None),
        "keep no running variance, which Eq. 6 needs",
        "Build them with track_running_stats=True",
    )
    _refuse(
        (name for name, norm in copies.items() if isinstance(norm, nn.LayerNorm) and norm.weight.dim() != 1),
        "normalise over more than the channels, so a channel has no single scale",
        "Use layer norms over the last axis",
    )


def check_connections(
    model: nn.Module, connections: Sequence[Connection], trunk: Sequence[str], summed: Sequence[str]
) -> None:
    """Every trainable convolution and linear layer of the trunk reaches a norm, or is listed as summed.

    Raises:
        ValueError: otherwise, or nothing is connected at all.
    """
    if not connections:
        raise ValueError(
            "no convolution or linear layer feeds a task-specific norm. Was a training forward with gradients run "
            "inside watch(model)?"
        )
    connected = {connection.layer for connection in connections}
    inside = tuple(f"{name}." for name in task_copies(model))
    roots = tuple(f"{root}." for root in trunk)
    _refuse(
        (
            name
            for name, module in model.named_modules()
            if isinstance(module, LAYERS)
            and module.weight.requires_grad
            and (not trunk or f"{name}.".startswith(roots))
            and not name.startswith(inside)
            and name not in connected
            and not any(fnmatch(name, pattern) for pattern in summed)
        ),
        "of the trunk feed no task-specific norm through operations that keep channels apart",
        "Narrow `trunk`, add a norm behind them, name their attention's pair in `attention`, or list them in `summed` "
        "to let their gradients be summed",
    )


def _refuse(names: Iterable[str], problem: str, remedy: str) -> None:
    found = list(names)
    if found:
        raise ValueError(f"layers {name_some(found)} {problem}. {remedy}")

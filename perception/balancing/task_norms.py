"""Turning layers into one copy per task, and a model with copies back into plain models, one per task."""

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from perception.balancing.rotograd import RotoGrad
from perception.balancing.task_copies import TaskCopies, check_tasks, task_copies
from perception.utils import name_some


def is_norm(name: str, module: nn.Module) -> bool:
    """Whether a module is a batch norm (of any dimension, synchronised or not) or a layer norm."""
    return isinstance(module, _BatchNorm | nn.LayerNorm)


def convert_task_norms(
    model: nn.Module,
    tasks: Sequence[str],
    *,
    under: Sequence[str] = (),
    predicate: Callable[[str, nn.Module], bool] = is_norm,
) -> nn.Module:
    """A copy of the model in which each norm has its own parameters and statistics for every task.

    *Source*: connection strength §4.2, "we employ task-specific batch normalization". All tasks start with the
    original's values, so that each task's first output is the original's. Convert after loading weights and before
    building the optimiser.

    Args:
        model: what to convert; it is not changed.
        tasks: the tasks' names.
        under: names of submodules to convert; none means all of the model.
        predicate: (name, module) → whether to convert; by default every batch norm and layer norm.

    Returns:
        The converted copy; run it under `use_task`.

    Raises:
        ValueError: an unknown submodule, nothing to convert, or a norm that has copies already.

    Example:
        >>> from perception.balancing.task_copies import use_task
        >>> converted = convert_task_norms(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), ("det", "seg"))
        >>> sorted(name for name, _ in converted.named_parameters() if "1." in name)
        ['1.det.bias', '1.det.weight', '1.seg.bias', '1.seg.weight']
    """
    check_tasks(tasks)
    chosen = _names_under(model, under)
    found = [name for name, module in model.named_modules() if name in chosen and predicate(name, module)]
    if not found:
        raise ValueError(
            f"convert_task_norms found no norm to convert in {type(model).__name__} under {list(under) or 'the root'}. "
            "Batch norms and layer norms are converted; name submodules that have some, or give a predicate"
        )
    return replace_layers(model, found, lambda layer: TaskCopies(layer=layer, tasks=tasks))


def plain_model(model: nn.Module, task: str) -> nn.Module:
    """A copy without copies per task: what the model is for one task, with exactly the same outputs.

    Heads of other tasks remain; leave them out before an export.

    Args:
        model: has `TaskCopies`; it is not changed.
        task: whose copies stay.

    Raises:
        ValueError: the model has no copies, none for this task, or such as mix the tasks (cross-stitch).

    Example:
        >>> norm = convert_task_norms(nn.LayerNorm(3), ("det", "seg"))
        >>> type(plain_model(norm, "seg")).__name__
        'LayerNorm'
    """
    copies = _separable_copies(model)
    unable = [name for name, layer in copies.items() if task not in layer]
    if not copies or unable:
        known = sorted({known for layer in copies.values() for known in layer.tasks})
        raise ValueError(
            f"plain_model({task!r}): {type(model).__name__} has copies for the tasks {known}"
            + (f", and layers {unable} lack {task!r}" if copies else "")
            + ". Name a task that all converted layers know"
        )
    return replace_layers(model, list(copies), lambda layer: layer[task])


def plain_state_dict(model: nn.Module, task: str) -> dict[str, Tensor]:
    """The weights of `plain_model(model, task)`, without building it: names as before the conversion.

    Raises:
        ValueError: a layer has no copy for this task, or mixes the tasks (cross-stitch).
    """
    state = dict(model.state_dict())
    for name, layer in _separable_copies(model).items():
        if task not in layer:
            raise ValueError(
                f"plain_state_dict({task!r}): layer {name!r} knows {list(layer.tasks)}. Name one of these"
            )
        prefix = f"{name}." if name else ""
        for other in layer.tasks:
            for key in [key for key in state if key.startswith(f"{prefix}{other}.")]:
                value = state.pop(key)
                if other == task:
                    state[prefix + key.removeprefix(f"{prefix}{other}.")] = value
    return state


def spread_state_dict(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a plain model for a model with copies: each copy gets the plain layer's; rotations are the identity.

    Args:
        model: has `TaskCopies` or a `RotoGrad`, or not: then nothing changes.
        state: weights; those of a layer that has copies in it as well, and rotations, are kept as they are. What a
            layer has beside its copies (mixing weights) stays the model's.

    Example:
        >>> norm = convert_task_norms(nn.LayerNorm(3), ("det", "seg"))
        >>> sorted(spread_state_dict(norm, nn.LayerNorm(3).state_dict()))
        ['det.bias', 'det.weight', 'seg.bias', 'seg.weight']
    """
    spread = dict(state)
    for name, layer in task_copies(model).items():
        prefix = f"{name}." if name else ""
        beside = {
            key: value
            for key, value in layer.state_dict().items()
            if key.partition(".")[0] not in layer.tasks
        }
        for key in layer[layer.tasks[0]].state_dict():
            if prefix + key in spread:
                value = spread.pop(prefix + key)
                spread |= {f"{prefix}{task}.{key}": value for task in layer.tasks}
                spread |= {prefix + other: own for other, own in beside.items()}
    for name, module in model.named_modules():
        if isinstance(module, RotoGrad) and not any(key.startswith(f"{name}.") for key in spread):
            spread |= {f"{name}.{key}": torch.zeros_like(value) for key, value in module.state_dict().items()}
    return spread


def join_state_dicts(model: nn.Module, states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Weights of one plain model per task, say of single-task trainings, for a model with copies: to each task its own.

    *Source*: how cross-stitch networks start in Misra et al. (CVPR 2016).

    Args:
        model: has `TaskCopies`; what a layer has beside its copies (mixing weights) stays the model's.
        states: task → weights of its plain model. What has no copies, such as a head, must be in one of them alone.

    Raises:
        ValueError: other tasks than the model's copies have, or weights without copies in several models.

    Example:
        >>> norm = convert_task_norms(nn.LayerNorm(3), ("det", "seg"))
        >>> joined = join_state_dicts(norm, {task: nn.LayerNorm(3).state_dict() for task in ("det", "seg")})
        >>> sorted(joined)
        ['det.bias', 'det.weight', 'seg.bias', 'seg.weight']
    """
    copies = task_copies(model)
    known = {task: None for layer in copies.values() for task in layer.tasks}
    if set(states) != set(known):
        raise ValueError(
            f"{type(model).__name__} has copies of layers for {list(known) or 'no tasks'}, the weights are for "
            f"{list(states)}; give each of them the weights of one model"
        )
    joined: dict[str, Tensor] = {}
    owners: dict[str, str] = {}
    own = model.state_dict()
    for name, layer in copies.items():
        prefix = f"{name}." if name else ""
        keys = [key for key in own if key.startswith(prefix)]
        joined |= {k: own[k] for k in keys if k.removeprefix(prefix).partition(".")[0] not in layer.tasks}
    for task, state in states.items():
        new: dict[str, str] = {}
        for name, layer in copies.items():
            prefix = f"{name}." if name else ""
            new |= {prefix + key: f"{prefix}{task}.{key}" for key in layer[task].state_dict()}
        for key, value in state.items():
            target = new.get(key, key)
            if target in owners:
                raise ValueError(
                    f"{key} exists once for all tasks, but both the models of {owners[target]!r} and {task!r} have it. "
                    "Leave it out of all but one, or start from one model"
                )
            joined[target], owners[target] = value, task
    return joined


def replace_layers(
    model: nn.Module, names: Sequence[str], replace: Callable[[nn.Module], nn.Module]
) -> nn.Module:
    """A deep copy of the model in which the named layers are replaced; one used in two places stays one.

    Raises:
        ValueError: a name lies inside another one's layer that has copies already.
    """
    root = copy.deepcopy(model)
    modules = dict(root.named_modules())
    new: dict[int, nn.Module] = {}
    for name in names:
        inside = [other for other in task_copies(root) if other != name and _is_under(name, other)]
        if inside:
            raise ValueError(f"layer {inside[0]!r} has one copy per task already, so {name!r} can't get one")
        new[id(modules[name])] = replace(modules[name])
    for parent in modules.values():
        for child_name, child in list(parent._modules.items()):
            if id(child) in new:
                parent.add_module(child_name, new[id(child)])
    return new.get(id(root), root)


def _separable_copies(model: nn.Module) -> dict[str, TaskCopies]:
    copies = task_copies(model)
    joined = [name for name, layer in copies.items() if not layer.stands_alone]
    if joined:
        raise ValueError(
            f"the tasks' copies of {name_some(joined)} run together and are mixed (cross-stitch), so there is no plain "
            "model of one task; use the whole one"
        )
    return copies


def _names_under(model: nn.Module, under: Sequence[str]) -> set[str]:
    names = [name for name, _ in model.named_modules()]
    if isinstance(under, str):
        raise ValueError(f"under must be a sequence of submodule names, got the string {under!r}")
    unknown = sorted(set(under) - set(names))
    if unknown:
        children = [name for name, _ in model.named_children()]
        raise ValueError(f"{type(model).__name__} has no submodules {unknown}; its first level is {children}")
    return {name for name in names if not under or any(_is_under(name, root) for root in under)}


def _is_under(name: str, root: str) -> bool:
    return root == "" or name == root or name.startswith(f"{root}.")

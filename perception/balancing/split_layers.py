"""Giving each task its own copy of chosen layers."""

from collections.abc import Sequence

from torch import nn

from perception.balancing.task_copies import TaskCopies, check_tasks
from perception.balancing.task_norms import replace_layers


def split_layers(model: nn.Module, layers: Sequence[str], tasks: Sequence[str]) -> nn.Module:
    """A copy of the model in which each task has its own copy of the named layers.

    *Source*: Recon, Algorithm 1, "turn shared layers into task-specific layers". Run under `use_task`, each task
    computes exactly its branch of the split network; layers before the first split one are computed once per task.
    All copies start equal. `plain_model` gives back one model per task.

    Args:
        model: the plain model; it is not changed.
        layers: names, as `LayerConflicts.top` returns them.
        tasks: the tasks' names.

    Raises:
        ValueError: no layer, an unknown one, or one that itself holds layers or has parameters but no forward.

    Example:
        >>> split = split_layers(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), ["1"], ("det", "seg"))
        >>> sorted({name.rpartition('.')[0] for name, _ in split.named_parameters()})
        ['0', '1.det', '1.seg']
    """
    check_tasks(tasks)
    modules = dict(model.named_modules())
    unknown = [layer for layer in layers if layer not in modules]
    if not layers or unknown:
        raise ValueError(
            f"split_layers needs names of the model's layers; got {list(layers)}, unknown: {unknown}"
        )
    holders = [layer for layer in layers if next(modules[layer].children(), None) is not None]
    if holders:
        raise ValueError(
            f"layers {holders} hold other layers and can't be split as one. Leave them out of the candidates, or "
            "choose fewer layers"
        )
    return replace_layers(model, layers, lambda layer: TaskCopies(layer=layer, tasks=tasks))

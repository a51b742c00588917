"""Cross-stitch: one trunk per task, run in step, whose feature maps are mixed linearly after each stage.

Legend: T tasks, B samples, C channels.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from perception.balancing.task_copies import TaskCopies, check_tasks, task_copies
from perception.balancing.task_norms import replace_layers
from perception.utils import did_you_mean

STITCH = "stitch"
"""Name of the units beside the copies of a layer."""


class CrossStitchUnit(nn.Module):
    """Learned linear mixture of the tasks' feature maps.

    *Source*: Misra et al., Cross-stitch Networks for Multi-task Learning (CVPR 2016), Eq. 1:
    x̃_A = α_AA x_A + α_AB x_B at each position, one α for a whole map or one per channel. Its ablations start from
    convex mixtures with most of the weight on the own task and favour a higher learning rate for α, with SGD.
    *Extension*: any number of tasks, the rest of the weight shared evenly among the others.

    Args:
        tasks: names of at least two tasks.
        channels: C for one mixture per channel; None for one mixture per map.
        own: initial weight of a task's own map, in 0..1.

    Raises:
        ValueError: fewer than two tasks, or a weight outside 0..1.

    Example:
        >>> unit = CrossStitchUnit(tasks=("det", "seg"), own=0.75)
        >>> mixed = unit({"det": torch.ones(1, 2, 1, 1), "seg": torch.zeros(1, 2, 1, 1)})
        >>> mixed["det"].mean().item(), mixed["seg"].mean().item()
        (0.75, 0.25)
    """

    def __init__(self, *, tasks: Sequence[str], channels: int | None = None, own: float = 0.9) -> None:
        super().__init__()
        check_tasks(tasks)
        if len(tasks) < 2 or not 0 <= own <= 1:
            raise ValueError(
                f"a cross-stitch unit mixes at least two tasks with own in 0..1; got {list(tasks)} and own = {own}"
            )
        self.tasks = tuple(tasks)
        other = (1 - own) / (len(tasks) - 1)
        mixture = torch.full((len(tasks), len(tasks)), other).fill_diagonal_(own)
        # MMEngine takes the longest of its custom_keys that a name holds: this one must win over 'img_backbone'.
        self.cross_stitch_weights = nn.Parameter(
            mixture[..., None].repeat(1, 1, channels or 1)
        )  # (T, T, C or 1)

    def forward(self, maps: Mapping[str, Tensor], *, channel_axis: int = 1) -> dict[str, Tensor]:
        """Mix.

        Args:
            maps: task → (B, C, ...), all of one shape.
            channel_axis: the axis of C, where it is another one.

        Returns:
            Task → as the maps, in their memory format.

        Raises:
            ValueError: other tasks, maps of different shapes, or another number of channels than the unit's.
        """
        if set(maps) != set(self.tasks) or len({value.shape for value in maps.values()}) != 1:
            raise ValueError(
                f"a cross-stitch unit needs one map per task of {list(self.tasks)}, all of one shape; got "
                f"{ {task: tuple(value.shape) for task, value in maps.items()} }"
            )
        first = maps[self.tasks[0]]
        size = self.cross_stitch_weights.shape[2]
        if size not in (1, first.shape[channel_axis]):
            raise ValueError(
                f"a cross-stitch unit for {size} channels got maps of {tuple(first.shape)}, channels on axis "
                f"{channel_axis}; use one mixture per map"
            )
        shape = [1] * first.dim()
        shape[channel_axis] = size
        weights = self.cross_stitch_weights.to(first.dtype)
        # Sums of products keep the maps' memory format, which a stack or a matrix product would lose.
        return {
            task: sum(weights[i, j].view(shape) * maps[other] for j, other in enumerate(self.tasks))
            for i, task in enumerate(self.tasks)
        }


class StitchedCopies(TaskCopies):
    """One copy of a layer per task, all run at once: each on its part of the rows; and their outputs mixed.

    All tensors that come in or go out have the rows of task after task along their first axis, as `TaskStreams` makes
    them. A copy sees its own task's rows alone, so that a batch norm's statistics are its task's.

    Args:
        layer: what is copied.
        tasks: at least two names.
        own: as `CrossStitchUnit`.
        num_maps: how many tensors the layer returns, each mixed by a unit of its own; 0: no mixing.
        channels: of these tensors, for one mixture per channel; None: one per map. Channels are on the last axis of
            (B, Q, C), else on the second.

    Raises:
        ValueError: a task has the units' name; at a forward, tensors whose rows can't be split, or other outputs.

    Example:
        >>> layer = StitchedCopies(layer=nn.Linear(2, 2), tasks=("det", "seg"), num_maps=1, own=0.5)
        >>> rows = layer(torch.ones(6, 2))
        >>> rows.shape, bool((rows[:3] == rows[3:]).all())
        (torch.Size([6, 2]), True)
    """

    def __init__(
        self,
        *,
        layer: nn.Module,
        tasks: Sequence[str],
        own: float = 0.9,
        num_maps: int = 0,
        channels: int | None = None,
    ) -> None:
        super().__init__(layer=layer, tasks=tasks)
        if STITCH in self:
            raise ValueError(f"{STITCH!r} names the mixing weights; give the group another name")
        self._tasks = tuple(tasks)
        self.stands_alone = False
        if num_maps:
            units = [CrossStitchUnit(tasks=tasks, channels=channels, own=own) for _ in range(num_maps)]
            self.add_module(STITCH, nn.ModuleList(units))

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks' names, in their order."""
        return self._tasks

    @property
    def units(self) -> Sequence[CrossStitchUnit]:
        """The mixtures of the layer's outputs, in their order; none without mixing."""
        return tuple(self[STITCH]) if STITCH in self else ()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the copies return, row by row, mixed."""
        sizes = {tensor.shape[:1] for tensor in _tensors((args, kwargs))}
        if len(sizes) != 1 or any(not size or size[0] % len(self.tasks) for size in sizes):
            raise ValueError(
                f"a {type(self[self.tasks[0]]).__name__} that exists once per task got tensors whose first axes are "
                f"{sorted(map(tuple, sizes))}; each must hold the rows of all {len(self.tasks)} tasks. Choose stages "
                "whose inputs have the batch as their first axis, or the module around them"
            )
        parts = _split_rows((args, kwargs), len(self.tasks))
        outputs = {task: self[task](*a, **k) for task, (a, k) in zip(self.tasks, parts, strict=True)}
        first = outputs[self.tasks[0]]
        if isinstance(first, Tensor):
            (joined,) = self._join({task: (value,) for task, value in outputs.items()})
            return joined
        return type(first)(self._join(outputs))

    def _join(self, outputs: Mapping[str, Sequence[Tensor]]) -> list[Tensor]:
        num_maps = {len(maps) for maps in outputs.values()}
        units = self.units
        if units and num_maps != {len(units)}:
            raise ValueError(
                f"a cross-stitched stage with mixtures for {len(units)} output(s) gave {sorted(num_maps)}; its number "
                "of outputs is the layer's `num_outs`, else 1"
            )
        joined = []
        for index, column in enumerate(zip(*(outputs[task] for task in self.tasks), strict=True)):
            maps = dict(zip(self.tasks, column, strict=True))
            if units:
                maps = units[index](maps, channel_axis=2 if column[0].dim() == 3 else 1)
            joined.append(torch.cat([maps[task] for task in self.tasks]))
        return joined


def stitch_trunk(
    model: nn.Module,
    *,
    stages: Sequence[str],
    tasks: Sequence[str],
    trunk: Sequence[str] = (),
    own: float = 0.9,
    per_channel: bool = False,
) -> nn.Module:
    """A copy of the model whose trunk exists once per task, mixed after each stage.

    *Source*: as `CrossStitchUnit`. All copies start with the trunk's weights; in the paper they start from single-task
    networks, see `join_state_dicts`. Modules around the stages are copied as well, each as a whole where no stage lies
    in it; those without parameters and buffers stay as they are. The trunk must be fed the rows of all tasks, see
    `TaskStreams`.

    Args:
        model: it is not changed.
        stages: names of modules whose outputs are mixed: tensors, or as many of them as the module's `num_outs` says.
        tasks: at least two names.
        trunk: names of the modules that hold the stages; none: all that do on the model's first level.
        own: as `CrossStitchUnit`.
        per_channel: one mixture per channel instead of per map.

    Raises:
        ValueError: no stage, an unknown one, one outside the trunk, inside another one, frozen, without a forward, or
            inside a module that has parameters of its own.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))
        >>> stitched = stitch_trunk(nn.Sequential(net), stages=["0.0", "0.3"], tasks=("det", "seg"))
        >>> [name for name, _ in stitched.named_parameters() if "0.3.stitch" in name or "det.weight" in name]
        ['0.0.det.weight', '0.1.det.weight', '0.3.det.weight', '0.3.stitch.0.cross_stitch_weights']
    """
    check_tasks(tasks)
    modules = dict(model.named_modules())
    trunk = tuple(trunk) or tuple({stage.partition(".")[0]: None for stage in stages})
    _check_stages(modules, stages, trunk)
    copied: list[str] = []
    for root in trunk:
        _collect(modules, root, set(stages), copied)

    def stitch(layer: nn.Module) -> nn.Module:
        channels = _num_channels(layer) if per_channel else None
        num_maps = int(getattr(layer, "num_outs", 1))
        return StitchedCopies(layer=layer, tasks=tasks, own=own, num_maps=num_maps, channels=channels)

    stitched = replace_layers(model, stages, stitch)
    return replace_layers(stitched, copied, lambda layer: StitchedCopies(layer=layer, tasks=tasks))


def stitch_units(model: nn.Module) -> dict[str, Sequence[CrossStitchUnit]]:
    """Stage → its units."""
    copies = task_copies(model).items()
    return {name: layer.units for name, layer in copies if isinstance(layer, StitchedCopies) and layer.units}


def _check_stages(modules: Mapping[str, nn.Module], stages: Sequence[str], trunk: Sequence[str]) -> None:
    if isinstance(stages, str) or not stages:
        raise ValueError(f"stages must name at least one module in a sequence, got {stages!r}")
    for name in (*trunk, *stages):
        if name not in modules:
            raise ValueError(f"cross-stitch: the model has no module {name!r}.{did_you_mean(name, modules)}")
    for stage in stages:
        if not any(stage == root or stage.startswith(f"{root}.") for root in trunk):
            raise ValueError(
                f"stage {stage!r} is not in the trunk {list(trunk)}; name its module there as well"
            )
        outer = [other for other in stages if stage.startswith(f"{other}.")]
        if outer:
            raise ValueError(f"stage {stage!r} is inside stage {outer[0]!r}; keep one of them")
        if not any(parameter.requires_grad for parameter in modules[stage].parameters()):
            raise ValueError(
                f"stage {stage!r} has no trainable parameter, so its copies would stay equal; leave it out"
            )
        if isinstance(modules[stage], nn.ModuleList | nn.ModuleDict):
            raise ValueError(f"stage {stage!r} is a container without a forward; name what it holds")


def _collect(modules: Mapping[str, nn.Module], name: str, stages: set[str], copied: list[str]) -> None:
    """Names of the largest modules that hold parameters or buffers, and no stage."""
    module = modules[name]
    if name in stages:
        return
    holds_stage = any(stage.startswith(f"{name}.") for stage in stages)
    if holds_stage or isinstance(module, nn.ModuleList | nn.ModuleDict):
        if [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            inside = sorted(stage for stage in stages if stage.startswith(f"{name}."))
            raise ValueError(
                f"stages {inside} are inside {name!r}, which has parameters or buffers of its own and can only be "
                f"copied as a whole; name {name!r} instead"
            )
        for child, _ in module.named_children():
            _collect(modules, f"{name}.{child}", stages, copied)
    elif module.state_dict() or next(module.buffers(), None) is not None:
        copied.append(name)


def _num_channels(layer: nn.Module) -> int:
    """Of what a stage gives: those of its last layer that has some."""
    for module in reversed(list(layer.modules())):
        for attribute in ("out_channels", "out_features", "num_features", "normalized_shape"):
            size = getattr(module, attribute, None)
            if size is not None:
                return int(size if isinstance(size, int) else size[-1])
    raise ValueError(
        f"per_channel: a {type(layer).__name__} has no layer that tells its number of channels; use one mixture per map"
    )


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(item)


def _split_rows(value: Any, num_parts: int) -> list[Any]:
    """Arguments of a call → those of each part's call; what is no tensor goes to all."""
    if isinstance(value, Tensor):
        return list(value.chunk(num_parts))
    if isinstance(value, Mapping):
        columns = {key: _split_rows(item, num_parts) for key, item in value.items()}
        return [{key: column[part] for key, column in columns.items()} for part in range(num_parts)]
    if isinstance(value, list | tuple):
        rows = [_split_rows(item, num_parts) for item in value]
        return [type(value)(row[part] for row in rows) for part in range(num_parts)]
    return [value] * num_parts

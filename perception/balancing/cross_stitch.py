"""Cross-stitch units: one trunk per task, whose feature maps are mixed linearly after each stage.

Legend: T tasks, C channels.
"""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from perception.balancing.task_copies import check_tasks


class CrossStitchUnit(nn.Module):
    """Learned linear mixture of the tasks' feature maps.

    *Source*: Misra et al., Cross-stitch Networks for Multi-task Learning (CVPR 2016), Eq. 1:
    x̃_A = α_AA x_A + α_AB x_B at each position, one α for a whole map or one per channel. Its ablations start from
    convex mixtures with most of the weight on the own task and favour a higher learning rate for α (in a config:
    `paramwise_cfg=dict(custom_keys={"stitch": dict(lr_mult=100.0)})`). *Extension*: any number of tasks, the rest of
    the weight shared evenly among the others.

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
        self.stitch = nn.Parameter(mixture[..., None].repeat(1, 1, channels or 1))  # (T, T, C or 1)

    def forward(self, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Mix.

        Args:
            maps: task → (B, C, ...), all of one shape.

        Returns:
            Task → (B, C, ...).

        Raises:
            ValueError: other tasks, or maps of different shapes.
        """
        if set(maps) != set(self.tasks) or len({value.shape for value in maps.values()}) != 1:
            raise ValueError(
                f"a cross-stitch unit needs one map per task of {list(self.tasks)}, all of one shape; got "
                f"{ {task: tuple(value.shape) for task, value in maps.items()} }"
            )
        stacked = torch.stack([maps[task] for task in self.tasks])  # (T, B, C, ...)
        weights = self.stitch.to(stacked.dtype).expand(-1, -1, stacked.shape[2])
        mixed = torch.einsum("ijc,jbc...->ibc...", weights, stacked)
        return dict(zip(self.tasks, mixed, strict=True))


class CrossStitchTrunk(nn.Module):
    """One copy of a trunk per task, run stage by stage with a `CrossStitchUnit` after each.

    *Source*: as `CrossStitchUnit`; there the copies start from single-task networks: load each task's weights
    into `stages.<task>`. *Config*: `CrossStitchTrunk(stages=..., tasks=("det", "seg"))` in place of a model's trunk,
    the model's heads reading their own task's map.

    Args:
        stages: the trunk's stages in order; copied per task, not changed.
        tasks: names of at least two tasks.
        channels: C after each stage, for one mixture per channel; None for one per map.
        own: as `CrossStitchUnit`.

    Raises:
        ValueError: no stage, or not one channel count per stage.

    Example:
        >>> trunk = CrossStitchTrunk(stages=[nn.Linear(3, 4), nn.Linear(4, 2)], tasks=("det", "seg"))
        >>> {task: tuple(x.shape) for task, x in trunk(torch.ones(5, 3)).items()}
        {'det': (5, 2), 'seg': (5, 2)}
    """

    def __init__(
        self,
        *,
        stages: Sequence[nn.Module],
        tasks: Sequence[str],
        channels: Sequence[int] | None = None,
        own: float = 0.9,
    ) -> None:
        super().__init__()
        widths = [None] * len(stages) if channels is None else list(channels)
        if not stages or len(widths) != len(stages):
            raise ValueError(
                f"a cross-stitch trunk needs stages and, if channels are given, one count per stage; got "
                f"{len(stages)} stages and channels = {channels}"
            )
        self.units = nn.ModuleList(CrossStitchUnit(tasks=tasks, channels=width, own=own) for width in widths)
        self.stages = nn.ModuleDict({task: nn.ModuleList(copy.deepcopy(s) for s in stages) for task in tasks})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, ...) → task → the last stage's mixed map."""
        maps = {task: x for task in self.stages}
        for index, unit in enumerate(self.units):
            maps = unit({task: stages[index](maps[task]) for task, stages in self.stages.items()})
        return maps

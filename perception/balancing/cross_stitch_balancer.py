"""Cross-stitch as a training: a trunk per group of tasks, mixed after each stage, by any balancer."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Unpack

import torch
from torch import nn

from perception.balancing._checks import check_heads_read_apart
from perception.balancing._grouped_balancer import GroupedBalancer, GroupedOptions
from perception.balancing.cross_stitch import CrossStitchUnit, stitch_trunk, stitch_units


class CrossStitch(GroupedBalancer):
    """Training of a model whose trunk exists once per group of tasks, mixed by learned weights after each stage.

    *Source*: Misra et al. (CVPR 2016), see `CrossStitchUnit` and `stitch_trunk`. The model runs once per batch, all
    groups in step, as `TaskStreams` says; each head reads its own group's features. Which parameters tasks share is
    read off the graph as ever: with the trunk's last module among the stages all of the trunk, by the mixing; a copy
    behind the last stage counts as shared with gradients of zero from the other groups. Copies start from one
    model's weights, or as in the paper from those of single-task networks (`load_from` with one per group).

    The model needs `task_streams` (a `TaskStreams`, used in its forward), and `stitch_stages` and `trunk_names` unless
    they are given. Mixing weights are named `….cross_stitch_weights`: a learning rate of their own is
    `paramwise_cfg=dict(custom_keys={"cross_stitch_weights": dict(lr_mult=10.0, decay_mult=0.0)})`; without
    `decay_mult=0` a weight decay pulls them to 0.

    Args:
        stages: modules of the trunk after which the groups are mixed; by default the model's `stitch_stages`, else
            the trunk's modules.
        trunk: submodules of which each group has its own; by default the model's `trunk_names`.
        own: initial weight of a group's own map, in 0..1; 1: separate networks at the start.
        per_channel: one mixture per channel instead of one per map.
        options: `groups` (the tasks that read a trunk) and the others of `GroupedBalancer`.

    Raises:
        ValueError: `own` outside 0..1; at `prepare`, a model without streams, stages that can't be stitched, or groups
            that don't fit its tasks.

    Example:
        >>> from perception.balancing import build_balancer
        >>> build_balancer({"name": "cross_stitch", "own": 0.8, "combination": "pcgrad"}).own
        0.8
    """

    changes_model = True
    has_shared_features = False

    def __init__(
        self,
        *,
        stages: Sequence[str] | None = None,
        trunk: Sequence[str] | None = None,
        own: float = 0.9,
        per_channel: bool = False,
        **options: Unpack[GroupedOptions],
    ) -> None:
        super().__init__(**options)
        CrossStitchUnit(tasks=("a", "b"), own=own)  # checks it
        self.stages = stages
        self.trunk = None if trunk is None else tuple(trunk)
        self.own = own
        self.per_channel = per_channel
        self._units: dict[str, Sequence[CrossStitchUnit]] = {}

    def prepare(self, model: nn.Module) -> nn.Module:
        """A copy of the model with a trunk per group."""
        groups = self._declare(model)
        check_heads_read_apart(model, "cross-stitch")
        if not hasattr(model, "task_streams"):
            raise ValueError(
                f"cross-stitch runs a trunk per group in one forward, but {type(model).__name__} has no "
                "`task_streams`. Use a model of perception.models, or give yours a TaskStreams and run it around the "
                "trunk"
            )
        for tasks in groups.values():
            with getattr(model, "only_tasks", lambda _: nullcontext())(tasks):
                pass  # refuses tasks that can't be computed apart
        trunk = self.trunk if self.trunk is not None else tuple(getattr(model, "trunk_names", ()))
        stages = self.stages if self.stages is not None else getattr(model, "stitch_stages", trunk)
        stitched = stitch_trunk(
            model,
            stages=stages,
            tasks=tuple(groups),
            trunk=trunk,
            own=self.own,
            per_channel=self.per_channel,
        )
        stitched.task_streams.groups = dict(groups)
        return stitched

    def adopt(self, model: nn.Module) -> None:
        """See the base class."""
        groups = self._declare(model)
        self._units = stitch_units(model)
        found = {unit.tasks for units in self._units.values() for unit in units}
        if found != {tuple(groups)}:
            raise ValueError(
                f"{type(model).__name__} has no mixture of the groups {list(groups)}; cross-stitch trains the model "
                "that its `prepare` returns"
            )

    def report(self) -> dict[str, Any]:
        """As the base class, and `own_weights`: stage → mean weight of a group's own maps."""
        means = [
            torch.stack([unit.cross_stitch_weights.detach().diagonal().mean() for unit in units]).mean()
            for units in self._units.values()
        ]
        own = dict(zip(self._units, torch.stack(means).tolist(), strict=True)) if means else {}
        return {**super().report(), "own_weights": own}

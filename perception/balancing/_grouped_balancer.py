"""The base of methods that have groups of tasks beside single ones."""

from collections.abc import Mapping, Sequence
from typing import TypedDict

from torch import nn

from perception.balancing._connection_checks import check_groups
from perception.balancing.component import Convention
from perception.balancing.geometric_mean import GeometricMean
from perception.balancing.gram_weighting import GramWeighting
from perception.balancing.loss_weighting import LossWeighting
from perception.balancing.multi_task_balancer import MultiTaskBalancer


class GroupedOptions(TypedDict, total=False):
    """Arguments of `GroupedBalancer`, which classes derived from it hand on."""

    groups: Mapping[str, Sequence[str]] | None
    combination: GramWeighting | GeometricMean | None
    weighting: LossWeighting | None
    scales: Mapping[str, float] | None
    convention: Convention | None
    scale_heads: bool | None


class GroupedBalancer(MultiTaskBalancer):
    """A balancer of single tasks beside groups of tasks, which the model declares unless they are given.

    Args:
        groups: name → tasks; by default the model's `task_groups`, or each task alone.
        combination: a Gram method or the geometric mean; None is the sum.
        weighting: as in `MultiTaskBalancer`.
        scales: as in `MultiTaskBalancer`.
        convention: as in `MultiTaskBalancer`.
        scale_heads: as in `MultiTaskBalancer`.

    Raises:
        ValueError: groups that overlap, fewer than two of them.
    """

    def __init__(
        self,
        *,
        groups: Mapping[str, Sequence[str]] | None = None,
        combination: GramWeighting | GeometricMean | None = None,
        weighting: LossWeighting | None = None,
        scales: Mapping[str, float] | None = None,
        convention: Convention | None = None,
        scale_heads: bool | None = None,
    ) -> None:
        stages = () if combination is None else (combination,)
        super().__init__(
            weighting=weighting,
            combination=stages,
            scales=scales,
            convention=convention,
            scale_heads=scale_heads,
        )
        self._groups = None if groups is None else {name: tuple(tasks) for name, tasks in groups.items()}
        if self._groups is not None:
            check_groups(self._groups)

    def _declare(self, model: nn.Module) -> dict[str, tuple[str, ...]]:
        names = tuple(getattr(model, "task_names", ()))
        if self._groups is None:
            declared = getattr(model, "task_groups", None) or {task: (task,) for task in names}
            self._groups = {name: tuple(tasks) for name, tasks in declared.items()}
        check_groups(self._groups, names or None)
        return self._groups

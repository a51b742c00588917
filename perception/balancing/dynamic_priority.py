"""Dynamic task prioritisation: the task that does worst comes first."""

import math
from collections.abc import Collection, Mapping
from typing import Literal

import torch
from torch import Tensor

from perception.balancing._checks import check_positive, check_range, check_task_names
from perception.balancing.component import Setting
from perception.balancing.kpi_average import KpiAverage
from perception.balancing.priorities import Priority


class DynamicTaskPriority(Priority):
    """Probabilities from the tasks' last losses or validation scores.

    *Source*: form "loss": wPCGrad, Eq. 1, p_i = L_i^gamma / sum_j L_j^gamma with the means of the last epoch's scaled
    global losses, uniform in the first epoch; gamma 2 for BEVFormer, 4 for CelebA, 1 for CIFAR-100. The paper brings
    the losses to roughly the same magnitude by constant factors before that and does not say whether training sees
    them too: `scales` here are the priority's alone; those of the balancer change the update as well. Form "kpi":
    Guo et al. 2018, the focal difficulty -(1 - k)^gamma log k of a score k in (0, 1], here divided by its sum.
    A task without a loss in an epoch keeps its last one; one that never had any counts as the mean of the others.

    Args:
        gamma: focusing exponent; 0 is uniform.
        form: "loss" or "kpi".
        scales: of "loss": task → constant factor of its loss in Eq. 1; a task left out has 1. Without them the task
            with the largest numbers leads whatever it has learned.
        momentum: of "kpi": weight of the new score in its moving average.
        potentials: of "kpi": task → single-task score, needed where lower is better: k = potential / score.
        lower_is_better: of "kpi": tasks whose score is better when lower.

    Raises:
        ValueError: an argument is out of range or names an unknown task.

    Example:
        >>> priority = DynamicTaskPriority(2)
        >>> priority.setup(Setting(task_names=("det", "seg"), max_epochs=2, total_steps=8, generator=torch.Generator()))
        >>> priority.end_epoch(torch.tensor([3.0, 1.0]))
        >>> priority.probabilities()
        tensor([0.9000, 0.1000], dtype=torch.float64)
    """

    state_names = ("losses",)

    def __init__(
        self,
        gamma: float = 2.0,
        *,
        form: Literal["loss", "kpi"] = "loss",
        scales: Mapping[str, float] | None = None,
        momentum: float = 1.0,
        potentials: Mapping[str, float] | None = None,
        lower_is_better: tuple[str, ...] = (),
    ) -> None:
        check_range("gamma", gamma, 0.0)
        if form not in ("loss", "kpi"):
            raise ValueError(f"form is {form!r}; allowed: 'loss' (wPCGrad, Eq. 1) or 'kpi' (Guo et al.)")
        check_positive(scales or {}, "the scale")
        if scales and form == "kpi":
            raise ValueError("scales are factors of losses; form 'kpi' looks at scores, so leave them out")
        self.gamma = gamma
        self.form = form
        self.scales = dict(scales or {})
        self.losses: Tensor | None = None
        self.scores = KpiAverage(potentials or {}, momentum=momentum, lower_is_better=lower_is_better)

    def parts(self) -> tuple[KpiAverage, ...]:
        """The moving average of the scores."""
        return (self.scores,)

    def setup(self, setting: Setting) -> None:
        """Learn the tasks."""
        super().setup(setting)
        check_task_names(self.scales, self.task_names, "the priority's scales")
        self.scores.check_potentials(is_complete=False)

    def check_directions(self, lower: Collection[str]) -> None:
        """See the base class; losses are always better when lower."""
        if self.form == "kpi":
            super().check_directions(lower)

    def end_epoch(self, mean_losses: Tensor) -> None:
        """Take (T,) mean losses of the epoch that ended; NaN keeps a task's last one."""
        mean_losses = mean_losses.double().cpu()
        self.losses = (
            mean_losses if self.losses is None else torch.where(mean_losses.isnan(), self.losses, mean_losses)
        )

    def probabilities(self) -> Tensor:
        """(T,) float64."""
        num_tasks = len(self.task_names)
        if self.form == "kpi":
            return _shares(focal_difficulty(self.scores.relative(), self.gamma), num_tasks)
        if self.losses is None:
            return torch.full((num_tasks,), 1 / num_tasks, dtype=torch.float64)
        factors = [self.scales.get(name, 1.0) for name in self.task_names] or [1.0] * len(self.losses)
        scaled = self.losses * torch.tensor(factors, dtype=torch.float64)
        known = scaled[~scaled.isnan()]
        losses = scaled.nan_to_num(float(known.mean()) if len(known) else 1.0).clamp(min=0)
        # Divided by the largest first: the power can then neither overflow nor lose all.
        return _shares(
            (losses / losses.max().clamp(min=torch.finfo(torch.float64).tiny)) ** self.gamma, num_tasks
        )


def focal_difficulty(scores: Tensor, gamma: float) -> Tensor:
    """Guo et al. 2018: -(1 - k)^gamma log k; large for a score near 0, 0 for 1.

    Args:
        scores: any shape, NaN where unknown; taken into [1e-20, 1].
        gamma: focusing exponent.

    Returns:
        the shape of `scores`; 1 where unknown.
    """
    known = scores.clamp(math.exp(-46), 1.0)
    return torch.where(scores.isnan(), torch.ones_like(scores), -((1 - known) ** gamma) * known.log())


def _shares(values: Tensor, num_tasks: int) -> Tensor:
    total = values.sum()
    return (
        values / total if float(total) > 0 else torch.full((num_tasks,), 1 / num_tasks, dtype=torch.float64)
    )

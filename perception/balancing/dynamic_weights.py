"""Dynamic task prioritisation as loss weights."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from perception.balancing.component import Component
from perception.balancing.dynamic_priority import DynamicTaskPriority, focal_difficulty
from perception.balancing.loss_weighting import LossWeighting


class DynamicTaskWeights(LossWeighting):
    """Loss weights that are larger for tasks that do worse.

    *Source*: form "kpi": Guo et al. 2018, w = -(1 - k)^gamma log k of a score k in (0, 1], not normalised, 1 before the
    first validation. Form "loss": the rule of wPCGrad's Eq. 1 as weights, T p_i, 1 in the first epoch.

    Args:
        gamma: focusing exponent.
        form: "kpi" or "loss".
        momentum: of "kpi": weight of a new score in its moving average.
        potentials: of "kpi": task → single-task score, needed where lower is better: k = potential / score.
        lower_is_better: of "kpi": tasks whose score is better when lower.

    Raises:
        ValueError: an argument is out of range or names an unknown task.
    """

    def __init__(
        self,
        gamma: float = 2.0,
        *,
        form: Literal["kpi", "loss"] = "kpi",
        momentum: float = 1.0,
        potentials: Mapping[str, float] | None = None,
        lower_is_better: tuple[str, ...] = (),
    ) -> None:
        self.priority = DynamicTaskPriority(
            gamma, form=form, momentum=momentum, potentials=potentials, lower_is_better=lower_is_better
        )

    def parts(self) -> tuple[Component, ...]:
        """The priority whose numbers are used."""
        return (self.priority,)

    def _weights(self, losses: Tensor, task_idx: Tensor) -> Tensor:
        if self.priority.form == "kpi":
            return focal_difficulty(self.priority.scores.relative(), self.priority.gamma)[task_idx]
        shares = self.priority.probabilities()[task_idx]
        total = float(shares.sum())
        return len(shares) * shares / total if total > 0 else torch.ones_like(losses)

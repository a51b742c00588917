"""Loss weights from how much of its single-task score each task has reached."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from perception.balancing._checks import check_range
from perception.balancing.component import Setting
from perception.balancing.kpi_average import KpiAverage
from perception.balancing.loss_weighting import LossWeighting


class AchievementWeights(LossWeighting):
    """softmax over the tasks of (1 - achievement / margin)^gamma, achievement = score / single-task score.

    *Source*: Yun and Cho, "Achievement-based Training Progress Balancing for Multi-Task Learning", Eqs. 3–4 and the
    softmax named below them; smoothing of the scores as in the official code. *Deviations*: the bracket stops at 0 (the
    printed one rises again beyond full achievement); a score where lower is better enters as potential / score.
    Weights are even until the first validation, then change at each. A task without any score yet has achievement 0.
    The weights sum to 1 over the present tasks (convention "mean"). With `GeometricMean` this is AMTL.

    Args:
        potentials: task → score of its single-task model, one for each task.
        margin: m, at least 1.
        gamma: focusing exponent, at least 0.
        momentum: weight of a new score in its moving average, in (0, 1].
        lower_is_better: tasks whose score is better when lower.

    Raises:
        ValueError: a potential of 0, an argument out of range; at `setup`, the tasks are others.

    Example:
        >>> weights = AchievementWeights({"det": 0.5, "seg": 0.4})
        >>> weights.setup(Setting(task_names=("det", "seg"), max_epochs=2, total_steps=8, generator=torch.Generator()))
        >>> weights.update_kpis({"det": 0.5, "seg": 0.1})
        >>> weights.weights(torch.ones(2), torch.ones(2, dtype=torch.bool))
        tensor([0.3593, 0.6407], dtype=torch.float64)
    """

    convention = "mean"

    def __init__(
        self,
        potentials: Mapping[str, float],
        margin: float = 1.05,
        gamma: float = 2.0,
        momentum: float = 0.1,
        *,
        lower_is_better: tuple[str, ...] = (),
    ) -> None:
        check_range("margin", margin, 1.0)
        check_range("gamma", gamma, 0.0)
        self.margin = margin
        self.gamma = gamma
        self.scores = KpiAverage(potentials, momentum=momentum, lower_is_better=lower_is_better)

    def parts(self) -> tuple[KpiAverage, ...]:
        """The moving average of the scores."""
        return (self.scores,)

    def setup(self, setting: Setting) -> None:
        """Check the names."""
        super().setup(setting)
        self.scores.check_potentials(is_complete=True)

    def report(self) -> dict[str, Any]:
        """Achievement of each task that has a score."""
        values = self.scores.relative(is_share=True).tolist()
        return {
            "achievement": {
                name: value
                for name, value in zip(self.task_names, values, strict=True)
                if name in self.scores.scores
            }
        }

    def _weights(self, losses: Tensor, task_idx: Tensor) -> Tensor:
        if not self.scores.scores:
            return torch.full_like(losses, 1 / len(losses))
        reached = self.scores.relative(is_share=True).nan_to_num(0.0, posinf=torch.inf) / self.margin
        return torch.softmax((1 - reached[task_idx].clamp(0, 1)) ** self.gamma, 0)

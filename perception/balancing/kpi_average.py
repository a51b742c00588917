"""Validation scores of the tasks, smoothed, as a share of what each task can reach."""

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from perception.balancing._checks import check_positive, check_range, check_task_names
from perception.balancing.component import Component
from perception.utils import get_logger

logger = get_logger("balancing")


class KpiAverage(Component):
    """Exponential moving average of each task's score; the first is taken as it is.

    *Source*: the official code of AMTL (momentum 0.1, the new value's weight); the paper has no smoothing. A score
    where lower is better enters as potential / score.

    Args:
        potentials: task → score of its single-task model.
        momentum: weight of the new score.
        lower_is_better: tasks whose score is better when lower.

    Raises:
        ValueError: a potential of 0, a momentum outside (0, 1], an unknown task.
    """

    state_names = ("scores",)

    def __init__(
        self, potentials: Mapping[str, float], *, momentum: float = 1.0, lower_is_better: tuple[str, ...] = ()
    ) -> None:
        check_positive(potentials, "the potential")
        check_range("momentum", momentum, 0.0, 1.0, is_open=True)
        self.potentials = dict(potentials)
        self.momentum = momentum
        self.lower_is_better = tuple(lower_is_better)
        self.scores: dict[str, float] = {}

    def check_potentials(self, *, is_complete: bool) -> None:
        """After `setup`: the names are tasks, and a potential is there for each that needs one."""
        check_task_names(self.potentials, self.task_names, "potentials", is_complete=is_complete)
        check_task_names(self.lower_is_better, self.task_names, "lower_is_better")
        lacking = [name for name in self.lower_is_better if name not in self.potentials]
        if lacking:
            raise ValueError(
                f"tasks {lacking} are lower_is_better and need a potential (their single-task score)"
            )

    def check_directions(self, lower: Collection[str]) -> None:
        """Refuse a task whose score is better when lower and that `lower_is_better` lacks.

        Raises:
            ValueError: otherwise a small error would pass for a bad score, and the best task for the worst.
        """
        wrong = [name for name in self.task_names if name in lower and name not in self.lower_is_better]
        if wrong:
            raise ValueError(
                f"the scores of the tasks {wrong} are errors, better when lower, but lower_is_better is "
                f"{list(self.lower_is_better)}. Give lower_is_better={[*self.lower_is_better, *wrong]} and, in "
                "`potentials`, the single-task scores of these tasks"
            )

    def update_kpis(self, kpis: Mapping[str, float]) -> None:
        """Take new scores; one that is not finite is left out with a warning, so the last one stays.

        Raises:
            ValueError: an unknown task.
        """
        check_task_names(kpis, self.task_names, "the validation scores")
        scores = dict(self.scores)
        for name, value in kpis.items():
            if not math.isfinite(value):
                logger.warning("the validation score of task %r is %s; its last one stays", name, value)
                continue
            old = scores.get(name, value)
            scores[name] = self.momentum * float(value) + (1 - self.momentum) * old
        self.scores = scores

    def relative(self, *, is_share: bool = False) -> Tensor:
        """(T,) float64 scores, higher is better, NaN where none is known.

        Args:
            is_share: divide a higher-is-better score by its potential too.
        """
        values = []
        for name in self.task_names:
            score = self.scores.get(name, math.nan)
            if name in self.lower_is_better:
                score = self.potentials[name] / score if score != 0 else math.inf
            elif is_share:
                score = score / self.potentials[name]
            values.append(score)
        return torch.tensor(values, dtype=torch.float64)

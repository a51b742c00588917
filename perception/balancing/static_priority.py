"""Priorities by epoch, fixed before training."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from perception.balancing._checks import check_range, check_task_names
from perception.balancing.component import Setting
from perception.balancing.priorities import Priority, as_probabilities
from perception.utils import did_you_mean

Probabilities = Mapping[str, float] | Sequence[float] | Literal["uniform"]

# wPCGrad, section 4: epochs counted from 1, of 24.
_STAGES = ((1, 15), (16, 18), (19, 24))
_NAMED = {"seg_to_vel": ("seg", "velocity"), "vel_to_seg": ("velocity", "seg")}


class StaticPriority(Priority):
    """Probabilities that depend on the epoch only.

    *Source*: wPCGrad, section 4: Seg→Vel favours segmentation in "almost every gradient conflict" in epochs 1–15, is
    uniform in 16–18 and favours velocity in 19–24; Vel→Seg is the other way round. The paper does not give the
    probability; 0.95 is ours.

    Args:
        schedule: "seg_to_vel", "vel_to_seg", or stages `(first epoch, last epoch, probabilities)`, or a mapping
            `(first, last) → probabilities`. Probabilities are "uniform", one number per task, or task → number (a task
            left out has 0). Epochs count from 1, stages follow each other without gap or overlap.
        favoured_probability: of the favoured task in the named schedules; the others share the rest evenly.
        tasks: names of the segmentation and the velocity task in the named schedules.
        stretch: scale the stages to the run's number of epochs; without it the run must end within the last stage.

    Raises:
        ValueError: at construction an unknown schedule or a gap or an overlap; at `setup` also an unknown task, a sum
            other than 1, or, without `stretch`, a run that ends before the last stage begins or after the schedule.

    Example:
        >>> priority = StaticPriority([(1, 2, [0.9, 0.1]), (3, 4, "uniform")])
        >>> priority.setup(Setting(task_names=("det", "seg"), max_epochs=4, total_steps=8, generator=torch.Generator()))
        >>> priority.begin_epoch(3)
        >>> priority.probabilities().tolist()
        [0.5, 0.5]
    """

    state_names = ("epoch",)

    def __init__(
        self,
        schedule: str | Mapping[tuple[int, int], Probabilities] | Sequence[tuple[int, int, Probabilities]],
        *,
        favoured_probability: float = 0.95,
        tasks: tuple[str, str] = ("seg", "velocity"),
        stretch: bool = False,
    ) -> None:
        check_range("favoured_probability", favoured_probability, 0.0, 1.0)
        self.schedule = schedule
        self.favoured_probability = favoured_probability
        self.tasks = dict(zip(("seg", "velocity"), tasks, strict=True))
        self.stretch = stretch
        self.epoch = 1
        self._stages: list[tuple[int, int, Tensor]] = []
        if isinstance(schedule, str):
            if schedule not in _NAMED:
                raise ValueError(
                    f"unknown schedule {schedule!r}.{did_you_mean(schedule, _NAMED)} Known: {sorted(_NAMED)}, or give "
                    "stages [(first epoch, last epoch, probabilities), ...]"
                )
            first, second = (self.tasks[task] for task in _NAMED[schedule])
            self._spans: list[tuple[int, int, Probabilities | str]] = [
                (*span, chosen) for span, chosen in zip(_STAGES, (first, "", second), strict=True)
            ]
        elif isinstance(schedule, Mapping):
            self._spans = [(int(span[0]), int(span[1]), value) for span, value in schedule.items()]
        else:
            self._spans = [(int(first), int(last), value) for first, last, value in schedule]
        self._check_spans()
        self.num_epochs = self._spans[-1][1]

    def setup(self, setting: Setting) -> None:
        """Resolve the stages' probabilities for the tasks."""
        super().setup(setting)
        last_start, last_epoch, _ = self._spans[-1]
        factor = setting.max_epochs / last_epoch if self.stretch else 1.0
        if round(last_epoch * factor) < setting.max_epochs:
            raise ValueError(
                f"the schedule ends with epoch {last_epoch}, but the run has {setting.max_epochs} epochs. Add a stage "
                "for the rest, or set stretch=True"
            )
        if not self.stretch and setting.max_epochs < last_start:
            raise ValueError(
                f"the run ends with epoch {setting.max_epochs}, before the schedule's last stage begins with epoch "
                f"{last_start}. Set stretch=True to scale the stages to the run, as in "
                "priority=dict(name='static', schedule=..., stretch=True), or give stages of your own"
            )
        self._stages = [
            (round((first - 1) * factor) + 1, round(last * factor), self._vector(first, last, value))
            for first, last, value in self._spans
        ]

    def begin_epoch(self, epoch: int) -> None:
        """Go to an epoch, counted from 1."""
        self.epoch = epoch

    def probabilities(self) -> Tensor:
        """(T,) of the current epoch.

        Raises:
            ValueError: `setup` was not called, or the epoch lies outside the schedule.
        """
        for first, last, vector in self._stages:
            if first <= self.epoch <= last:
                return vector
        spans = [(first, last) for first, last, _ in self._stages]
        raise ValueError(
            f"epoch {self.epoch} is in no stage of the schedule {spans}; call setup first, epochs from 1"
        )

    def _vector(self, first: int, last: int, value: Probabilities | str) -> Tensor:
        names = self.task_names
        if value in ("", "uniform"):
            return torch.full((len(names),), 1 / len(names), dtype=torch.float64)
        what = f"the priority of epochs {first}-{last}"
        if isinstance(value, str):
            check_task_names([value], names, what)
            rest = (1 - self.favoured_probability) / max(len(names) - 1, 1)
            vector = torch.tensor([self.favoured_probability if name == value else rest for name in names])
            return vector.double() / vector.double().sum()
        return as_probabilities(value, names, what)

    def _check_spans(self) -> None:
        if not self._spans:
            raise ValueError(
                "the schedule is empty; give stages [(first epoch, last epoch, probabilities), ...]"
            )
        self._spans.sort(key=lambda span: span[:2])
        expected = 1
        for first, last, _ in self._spans:
            if first != expected or last < first:
                kind = "overlap" if first < expected else "gap"
                kind = "stage that ends before it begins" if last < first else kind
                raise ValueError(
                    f"the schedule has a {kind} at stage ({first}, {last}): it should begin with epoch {expected}; "
                    "stages follow each other and the first begins with epoch 1"
                )
            expected = last + 1

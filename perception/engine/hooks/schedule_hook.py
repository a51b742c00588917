"""Steps the learning-rate schedules."""

import warnings
from typing import Any

from mmengine.hooks import ParamSchedulerHook

from perception.registry import HOOKS


@HOOKS.register_module()
class ScheduleHook(ParamSchedulerHook):
    """MMEngine's hook, quiet about a first step that was skipped or accumulated.

    MMEngine warns if a schedule steps before the optimiser did; a skipped non-finite step and accumulation are both
    reasons for that, and neither shifts the schedule.
    """

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Step the schedules that count iterations."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected call of `scheduler.step")
            super().after_train_iter(runner, batch_idx, data_batch, outputs)

    def after_train_epoch(self, runner: Any) -> None:
        """Step the schedules that count epochs."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected call of `scheduler.step")
            super().after_train_epoch(runner)

"""When checkpoints are saved."""

from typing import Any

from mmengine.hooks import Hook

from perception.engine.rank_notes import slow_part
from perception.registry import HOOKS


@HOOKS.register_module()
class CheckpointHook(Hook):
    """Saves every so many steps, at the end, and when the run is told to stop.

    A save waits for the end of an accumulation window, so that no half-summed gradient is lost.

    Args:
        interval: steps between checkpoints; None saves only at the end and at a stop.
        by_epoch: whether `interval` counts epochs.
        max_keep: how many checkpoints stay, at least 1.

    Raises:
        ValueError: `interval` or `max_keep` is below 1.
    """

    priority = "VERY_LOW"

    def __init__(self, *, interval: int | None = None, by_epoch: bool = False, max_keep: int = 2) -> None:
        if max_keep < 1 or (interval is not None and interval < 1):
            raise ValueError(
                f"CheckpointHook: interval={interval}, max_keep={max_keep}; both must be at least 1"
            )
        self.interval = interval
        self.by_epoch = by_epoch
        self.max_keep = max_keep
        self._is_overdue = False
        self._last_saved: int | None = None

    def before_train(self, runner: Any) -> None:
        """A resumed run has its newest checkpoint already."""
        self._last_saved = runner.iter if runner.iter else None

    def at_step_boundary(self, runner: Any) -> None:
        """Save if it is time, or overdue since the last accumulation window."""
        loop = runner.train_loop
        if self.interval is not None:
            count = loop.epoch if self.by_epoch else loop.iter
            is_due = count % self.interval == 0 and (not self.by_epoch or loop.batch_idx == 0)
            self._is_overdue = self._is_overdue or is_due
        must = runner.should_stop or loop.is_finished
        if (must or self._is_overdue) and (runner.optim_wrapper.is_between_updates or loop.is_finished):
            self._is_overdue = False
            if self._last_saved != loop.iter:
                with slow_part("saving a checkpoint"):
                    runner.save_training_state(max_keep=self.max_keep)
                self._last_saved = loop.iter

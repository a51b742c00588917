"""Starts the watch over the ranks."""

from typing import Any

from mmengine.hooks import Hook

from perception.engine.rank_watch import start_watch
from perception.engine.seconds import check_seconds
from perception.registry import HOOKS


@HOOKS.register_module()
class RankWatchHook(Hook):
    """Has every rank of a job watched: one that hangs is named and ends the job with exit code 5, see `rank_watch`.

    The runner ends the watch, since only it knows whether the run failed. One rank alone is not watched.

    Args:
        timeout_s: seconds until a rank hangs that gives no sign of life or keeps the others waiting.
        slow_timeout_s: seconds that a rank may keep the others waiting in the parts that take long: the start, an
            epoch's first batch, the first steps of training and evaluation (compilers), saving and scoring.

    Raises:
        ValueError: not seconds, or the second number is below the first.
    """

    priority = "VERY_HIGH"

    def __init__(self, *, timeout_s: float = 120.0, slow_timeout_s: float = 1800.0) -> None:
        try:
            self.timeout_s = check_seconds(timeout_s, "timeout_s")
            self.slow_timeout_s = check_seconds(slow_timeout_s, "slow_timeout_s")
        except ValueError as error:
            raise ValueError(
                f"RankWatchHook: {error}. To watch nothing set default_hooks.rank_watch=null"
            ) from None
        if slow_timeout_s < timeout_s:
            raise ValueError(
                f"RankWatchHook: slow_timeout_s={slow_timeout_s} is below timeout_s={timeout_s}. Raise it to that at "
                "least"
            )

    def at_start(self, runner: Any) -> None:
        """Start, before anything is built or loaded."""
        start_watch(timeout_s=self.timeout_s, slow_timeout_s=self.slow_timeout_s)

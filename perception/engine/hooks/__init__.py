"""Hooks: log, checkpoints, signals, schedules, TensorBoard."""

from perception.engine.hooks.balancer_hook import BalancerHook
from perception.engine.hooks.checkpoint_hook import CheckpointHook
from perception.engine.hooks.log_hook import LogHook
from perception.engine.hooks.rank_watch_hook import RankWatchHook
from perception.engine.hooks.runtime_info_hook import RuntimeInfoHook
from perception.engine.hooks.schedule_hook import ScheduleHook
from perception.engine.hooks.signal_hook import SignalHook
from perception.engine.hooks.tensorboard_hook import TensorboardBackend, TensorboardHook

__all__ = [
    "BalancerHook",
    "CheckpointHook",
    "LogHook",
    "RankWatchHook",
    "RuntimeInfoHook",
    "ScheduleHook",
    "SignalHook",
    "TensorboardBackend",
    "TensorboardHook",
]

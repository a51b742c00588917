"""What every run has in common: the seed, a checkpoint at the end of each epoch, and the watch over a job's ranks.

Two checkpoints are kept; for the watch see docs/faults.md.
"""

from perception.engine import CheckpointHook, RankWatchHook

randomness = dict(seed=0)
default_hooks = dict(
    checkpoint=dict(type=CheckpointHook, interval=1, by_epoch=True, max_keep=2),
    rank_watch=dict(type=RankWatchHook, timeout_s=120.0, slow_timeout_s=1800.0),
)

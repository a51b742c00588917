"""What every run has in common: the seed, and a checkpoint at the end of each epoch, of which two are kept."""

from perception.engine import CheckpointHook

randomness = dict(seed=0)
default_hooks = dict(checkpoint=dict(type=CheckpointHook, interval=1, by_epoch=True, max_keep=2))

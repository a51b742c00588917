"""The synthetic world of BEVFormer nano as streams: one frame per item, the model carries the history.

Scenes of 40 frames are split in two, as StreamPETR does: more shuffling, and histories of at most 20 frames (10 s).
"""

from mmengine.config import read_base

from perception.engine import StreamSampler

with read_base():
    from .nuscenes_synthetic import *

train_dataloader.update(sampler=dict(type=StreamSampler, max_frames=20))
train_dataloader.dataset.update(history="stream", queue_length=1)

"""BEVFormer nano trained on streams: scenes in the order of time, history carried from step to step.

Source: ours; the training of StreamPETR (Wang et al., ICCV 2023) for bevformer_nano, which has a queue of 2 instead.
Hardware: 2 CPU cores, no GPU.
Expected time: not run; see docs/streaming.md for the time of a step.
Expected NDS / mIoU: not run.
Command: perception train bevformer_nano_stream --work-dir work_dirs/nano_stream
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.nuscenes_synthetic_stream import *
    from .._base_.models.bevformer_nano import *
    from .._base_.runtime import *
    from .._base_.schedules.adamw_nano import *

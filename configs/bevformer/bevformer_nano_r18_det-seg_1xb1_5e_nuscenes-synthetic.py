"""BEVFormer nano, boxes and map together, on the synthetic world: the demo.

Source: ours; BEVFormer's structure (Li et al., ECCV 2022) at a size that two CPU cores train from scratch.
Hardware: 2 CPU cores, no GPU.
Expected time: about 15 minutes.
Expected NDS / mIoU: not run.
Command: perception train bevformer_nano --work-dir work_dirs/demo
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.nuscenes_synthetic import *
    from .._base_.models.bevformer_nano import *
    from .._base_.runtime import *
    from .._base_.schedules.adamw_nano import *

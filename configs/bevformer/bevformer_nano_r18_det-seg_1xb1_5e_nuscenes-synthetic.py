"""BEVFormer nano, boxes and map together, on the synthetic world: the demo.

Source: ours; BEVFormer's structure (Li et al., ECCV 2022) at a size that two CPU cores train from scratch.
Hardware: 2 CPU cores (AMD EPYC), no GPU.
Expected time: 15 minutes (measured 897 s for 1,600 steps, seed 0).
Expected NDS / mIoU: 0.149 / 0.219 on the held-out scenes (a constant prediction: 0.146 / 0.097); longer not run.
Command: perception train bevformer_nano --work-dir work_dirs/demo
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.nuscenes_synthetic import *
    from .._base_.models.bevformer_nano import *
    from .._base_.runtime import *
    from .._base_.schedules.adamw_nano import *

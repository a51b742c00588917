"""BEVFormer nano, boxes and map together, on the synthetic world: the demo.

Source: ours; BEVFormer's structure (Li et al., ECCV 2022) at a size that two CPU cores train from scratch.
Hardware: 2 CPU cores (AMD EPYC), no GPU.
Expected time: 728 s (1,280 steps).
Expected NDS / mIoU: 0.185 / 0.287, held-out scenes (a constant: 0.146 / 0.097); 15 epochs: 0.252 / 0.340.
Command: perception train bevformer_nano --work-dir work_dirs/demo
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.nuscenes_synthetic import *
    from .._base_.models.bevformer_nano import *
    from .._base_.runtime import *
    from .._base_.schedules.adamw_nano import *

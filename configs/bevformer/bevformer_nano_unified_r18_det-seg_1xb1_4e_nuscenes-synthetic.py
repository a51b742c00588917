"""BEVFormer nano with one decoder for boxes and map, on the synthetic world.

Source: ours; bevformer_nano with the decoder of wPCGrad's BEVFormer-Unified (Bohn et al. 2024, section 4).
Hardware: 2 CPU cores, no GPU.
Expected time: not run.
Expected NDS / mIoU: not run; the map is wider than bevformer_nano's, so mIoU is not comparable.
Command: perception train bevformer_nano_unified --work-dir work_dirs/nano_unified
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.nuscenes_synthetic_wide import *
    from .._base_.models.bevformer_nano_unified import *
    from .._base_.runtime import *
    from .._base_.schedules.adamw_nano import *

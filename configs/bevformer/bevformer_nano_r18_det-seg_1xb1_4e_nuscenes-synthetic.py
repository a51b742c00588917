"""BEVFormer nano, boxes and map together, on the synthetic world: the demo.

Source: ours; BEVFormer's structure (Li et al., ECCV 2022) at a size that two CPU cores train from scratch.
Hardware: 2 CPU cores (AMD EPYC), no GPU.
Expected time: 925 s measured for 4 epochs (1,280 steps, the demo); 5 epochs not run in this form.
Expected NDS / mIoU: 0.175 / 0.289 after the demo's 4 epochs, held-out scenes (a constant prediction: 0.146 / 0.097).
Command: perception train bevformer_nano --work-dir work_dirs/demo
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.nuscenes_synthetic import *
    from .._base_.models.bevformer_nano import *
    from .._base_.runtime import *
    from .._base_.schedules.adamw_nano import *

"""BEVFormer nano, balanced by wPCGrad, Seg → Vel, on the synthetic world.

Source: wPCGrad (Bohn et al. 2024), section 4; its 24 epochs stretched over these 5.
Hardware: 2 CPU cores, no GPU.
Expected time: not measured; one backward through the trunk per task.
Expected NDS / mIoU: not run.
Command: perception train bevformer_nano_det-seg-wpcgrad-seg-vel
"""

from mmengine.config import read_base

with read_base():
    from ....configs._base_.datasets.nuscenes_synthetic import *
    from ....configs._base_.models.bevformer_nano import *
    from ....configs._base_.runtime import *
    from ....configs._base_.schedules.adamw_nano import *

optim_wrapper.update(
    balancer=dict(name="wpcgrad", priority=dict(name="static", schedule="seg_to_vel", stretch=True))
)

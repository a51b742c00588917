"""BEVFormer nano, balanced by wPCGrad with dynamic priorities, on the synthetic world.

Source: wPCGrad (Bohn et al. 2024), Algorithm 2 and Eq. 1, gamma 2.
Hardware: 2 CPU cores, no GPU.
Expected time: not measured; one backward through the trunk per task.
Expected NDS / mIoU: not run.
Command: perception train bevformer_nano_det-seg-wpcgrad-dtp
"""

from mmengine.config import read_base

with read_base():
    from ....configs._base_.datasets.nuscenes_synthetic import *
    from ....configs._base_.models.bevformer_nano import *
    from ....configs._base_.runtime import *
    from ....configs._base_.schedules.adamw_nano import *

# Eq. 1 compares losses of about one size: means of the first 80 steps are 6.3, 7.4, 0.27
# and 2.8, after 240 steps 3.9, 5.7, 0.18 and 2.1.
_scales = dict(cls=1.0, box=0.7, velocity=20.0, seg=2.0)

optim_wrapper.update(balancer=dict(name="wpcgrad", priority=dict(name="dtp", gamma=2.0, scales=_scales)))

"""BEVFormer nano, balanced by PCGrad, on the synthetic world.

Source: the baseline of wPCGrad (Bohn et al. 2024), Tables 1 and 2; Yu et al. 2020, Algorithm 1.
Hardware: 2 CPU cores, no GPU.
Expected time: not measured; one backward through the trunk per task.
Expected NDS / mIoU: not run.
Command: perception train bevformer_nano_det-seg-pcgrad
"""

from mmengine.config import read_base

with read_base():
    from ....configs._base_.datasets.nuscenes_synthetic import *
    from ....configs._base_.models.bevformer_nano import *
    from ....configs._base_.runtime import *
    from ....configs._base_.schedules.adamw_nano import *

optim_wrapper.update(balancer="pcgrad")

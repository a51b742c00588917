"""BEVFormer nano, balanced by the geometric mean, on the synthetic world.

Source: GLS (Chennupati et al. 2019), Eq. 5 of AMTL (Yun and Cho 2023) with equal exponents: AMTL without its weights.
Hardware: 2 CPU cores, no GPU.
Expected time: not measured; one backward through the trunk per task is not needed: one in all.
Expected NDS / mIoU: not run.
Command: perception train bevformer_nano_det-seg-gls
"""

from mmengine.config import read_base

with read_base():
    from ....configs._base_.datasets.nuscenes_synthetic import *
    from ....configs._base_.models.bevformer_nano import *
    from ....configs._base_.runtime import *
    from ....configs._base_.schedules.adamw_nano import *

optim_wrapper.update(balancer="gls")

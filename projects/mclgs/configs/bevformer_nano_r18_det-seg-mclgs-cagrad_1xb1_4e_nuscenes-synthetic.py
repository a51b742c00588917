"""BEVFormer nano, balanced by MCLGS, then CAGrad, on the synthetic world.

Source: MCLGS (Igarashi and Yoneji 2022), Table 3, CAGrad + MCLGS; a_0 and r_t of its BDD100K runs.
Hardware: 2 CPU cores, no GPU.
Expected time: not measured; one backward through the trunk per task.
Expected NDS / mIoU: not run.
Command: perception train bevformer_nano_det-seg-mclgs-cagrad
"""

from mmengine.config import read_base

with read_base():
    from ....configs._base_.datasets.nuscenes_synthetic import *
    from ....configs._base_.models.bevformer_nano import *
    from ....configs._base_.runtime import *
    from ....configs._base_.schedules.adamw_nano import *

optim_wrapper.update(balancer=dict(name="mclgs+cagrad", pacing=dict(name="ratio", initial=120.0, ratio=2.0)))

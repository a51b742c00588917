"""BEVFormer tiny, balanced by wPCGrad, Vel → Seg, on nuScenes.

Source: wPCGrad (Bohn et al. 2024), Table 2, on our tiny model instead of the paper's BEVFormer-Small.
Hardware: 8 GPUs with one sample each.
Expected time: not measured.
Expected NDS / mIoU: not run.
Command: bash tools/dist_train.sh bevformer_tiny_det-seg-wpcgrad-vel-seg 8
"""

from mmengine.config import read_base

with read_base():
    from ....configs._base_.datasets.nuscenes import *
    from ....configs._base_.models.bevformer_tiny import *
    from ....configs._base_.runtime import *
    from ....configs._base_.schedules.adamw_24e import *

optim_wrapper.update(balancer="wpcgrad-vel-seg")

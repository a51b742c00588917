"""BEVFormer tiny, balanced by wPCGrad with dynamic priorities, on nuScenes.

Source: wPCGrad (Bohn et al. 2024), Table 2, on our tiny model instead of the paper's BEVFormer-Small.
Hardware: 8 GPUs with one sample each.
Expected time: not measured.
Expected NDS / mIoU: not run.
Command: bash tools/dist_train.sh bevformer_tiny_det-seg-wpcgrad-dtp 8
"""

from mmengine.config import read_base

with read_base():
    from ....configs._base_.datasets.nuscenes import *
    from ....configs._base_.models.bevformer_tiny import *
    from ....configs._base_.runtime import *
    from ....configs._base_.schedules.adamw_24e import *

# Eq. 1 compares losses of about one size. The paper does not give its factors; these are ours, not tuned on nuScenes:
# the ratios of bevformer_nano's loss terms in the middle of 15 epochs, counted for 6 decoder layers.
_scales = dict(cls=1.0, box=0.5, velocity=8.0, seg=6.0)

optim_wrapper.update(balancer=dict(name="wpcgrad", priority=dict(name="dtp", gamma=2.0, scales=_scales)))

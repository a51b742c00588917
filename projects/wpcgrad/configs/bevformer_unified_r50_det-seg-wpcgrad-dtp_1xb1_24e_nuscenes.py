"""BEVFormer-Unified, balanced by wPCGrad with dynamic priorities, on nuScenes.

Source: wPCGrad (Bohn et al. 2024), Algorithm 2, Eq. 1 with gamma 2, Table 3.
Hardware: 1 GPU (the paper: one A100).
Expected time: not run (the paper: about five days).
Expected NDS / mIoU: not run (the paper: 0.312 / 0.183).
Command: perception train bevformer_unified_det-seg-wpcgrad-dtp --set model.backbone_weights=resnet50.safetensors
"""

from mmengine.config import read_base

with read_base():
    from ....configs._base_.datasets.nuscenes_512x288_wide import *
    from ....configs._base_.models.bevformer_unified import *
    from ....configs._base_.runtime import *
    from ....configs._base_.schedules.adamw_24e_small import *

# Eq. 1 compares losses of about one size. The paper does not give its factors; these are bevformer_small's.
_scales = dict(cls=1.0, box=0.5, velocity=8.0, seg=6.0)

optim_wrapper.update(balancer=dict(name="wpcgrad", priority=dict(name="dtp", gamma=2.0, scales=_scales)))

"""BEVFormer-Small, balanced by wPCGrad, Vel → Seg, on nuScenes.

Source: wPCGrad (Bohn et al. 2024), section 4 and Table 2.
Hardware: 1 GPU (the paper: one A100).
Expected time: not run (the paper: about five days).
Expected NDS / mIoU: not run (the paper: 0.339 / 0.356).
Command: perception train bevformer_small_det-seg-wpcgrad-vel-seg --set model.backbone_weights=resnet50.safetensors
"""

from mmengine.config import read_base

with read_base():
    from ....configs._base_.datasets.nuscenes_512x288 import *
    from ....configs._base_.models.bevformer_small import *
    from ....configs._base_.runtime import *
    from ....configs._base_.schedules.adamw_24e_small import *

optim_wrapper.update(balancer="wpcgrad-vel-seg")

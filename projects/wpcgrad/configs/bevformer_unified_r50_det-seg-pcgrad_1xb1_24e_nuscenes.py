"""BEVFormer-Unified, balanced by PCGrad, on nuScenes.

Source: wPCGrad (Bohn et al. 2024), Table 3.
Hardware: 1 GPU (the paper: one A100).
Expected time: not run (the paper: about five days).
Expected NDS / mIoU: not run (the paper: 0.305 / 0.185).
Command: perception train bevformer_unified_det-seg-pcgrad --set model.backbone_weights=resnet50.safetensors
"""

from mmengine.config import read_base

with read_base():
    from ....configs._base_.datasets.nuscenes_512x288_wide import *
    from ....configs._base_.models.bevformer_unified import *
    from ....configs._base_.runtime import *
    from ....configs._base_.schedules.adamw_24e_small import *

optim_wrapper.update(balancer="pcgrad")

"""BEVFormer-Small, balanced by PCGrad, on nuScenes.

Source: wPCGrad (Bohn et al. 2024), Tables 1 and 2.
Hardware: 1 GPU (the paper: one A100).
Expected time: not run (the paper: about five days).
Expected NDS / mIoU: not run (the paper: 0.329 / 0.345).
Command: perception train bevformer_small_det-seg-pcgrad --set model.backbone_weights=resnet50.safetensors
"""

from mmengine.config import read_base

with read_base():
    from ....configs._base_.datasets.nuscenes_512x288 import *
    from ....configs._base_.models.bevformer_small import *
    from ....configs._base_.runtime import *
    from ....configs._base_.schedules.adamw_24e_small import *

optim_wrapper.update(balancer="pcgrad")

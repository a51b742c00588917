"""BEVFormer-Unified of wPCGrad: boxes and map from one decoder, on nuScenes, losses summed.

Source: wPCGrad (Bohn et al. 2024), section 4; its Table 3 has this model with PCGrad and wPCGrad only.
Hardware: 1 GPU (the paper: one A100).
Expected time: not run.
Expected NDS / mIoU: not run (the paper with PCGrad: 0.305 / 0.185, on a map of a resolution that it does not give).
Command: perception train bevformer_unified --set model.backbone_weights=resnet50.safetensors
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.nuscenes_512x288_wide import *
    from .._base_.models.bevformer_unified import *
    from .._base_.runtime import *
    from .._base_.schedules.adamw_24e_small import *

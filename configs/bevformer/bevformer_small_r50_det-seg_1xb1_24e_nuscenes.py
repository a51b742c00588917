"""BEVFormer-Small of wPCGrad: boxes and map together, on nuScenes, losses summed.

Source: wPCGrad (Bohn et al. 2024), section 4 and the row "Multitask" of Table 1.
Hardware: 1 GPU (the paper: one A100).
Expected time: not run (the paper: about five days).
Expected NDS / mIoU: not run (the paper: 0.317 / 0.336).
Command: perception train bevformer_small --set model.backbone_weights=resnet50.safetensors
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.nuscenes_512x288 import *
    from .._base_.models.bevformer_small import *
    from .._base_.runtime import *
    from .._base_.schedules.adamw_24e_small import *

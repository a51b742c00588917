"""BEVFormer-Unified without history: each frame on its own, in training and in evaluation.

Source: as bevformer_unified; the static variant (-S) of BEVFormer (Li et al., ECCV 2022).
Hardware: 1 GPU.
Expected time: not run.
Expected NDS / mIoU: not run.
Command: perception train bevformer_unified_static --set model.backbone_weights=resnet50.safetensors
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.nuscenes_512x288_wide import *
    from .._base_.models.bevformer_unified import *
    from .._base_.runtime import *
    from .._base_.schedules.adamw_24e_small import *

model.update(use_history=False)
train_dataloader.dataset.update(queue_length=1)  # no history image is decoded

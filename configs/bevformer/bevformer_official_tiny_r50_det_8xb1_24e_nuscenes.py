"""Upstream's BEVFormer tiny, boxes only, on nuScenes.

Source: bevformer_tiny.py of fundamentalvision/BEVFormer (Li et al., ECCV 2022).
Hardware: 8 GPUs with one sample each (upstream: 6.5 GB each).
Expected time: not run (upstream: about 2 days).
Expected NDS / mIoU: not run (upstream: NDS 0.354, mAP 0.252).
Command: bash tools/dist_train.sh bevformer_official_tiny 8 --set model.backbone_weights=resnet50.safetensors
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.nuscenes_det import *
    from .._base_.models.bevformer_official_tiny import *
    from .._base_.runtime import *
    from .._base_.schedules.adamw_24e import *

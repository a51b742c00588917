"""Upstream's BEVFormer small, boxes only, on nuScenes.

Source: bevformer_small.py of fundamentalvision/BEVFormer (Li et al., ECCV 2022).
Hardware: 8 GPUs with one sample each (upstream: 10.5 GB each, with checkpointing).
Expected time: not run (no time is published).
Expected NDS / mIoU: not run (upstream: NDS 0.479, mAP 0.370).
Command: bash tools/dist_train.sh bevformer_official_small 8 --set model.backbone_weights=r101_dcn.safetensors
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.nuscenes_det_1280x720 import *
    from .._base_.models.bevformer_official_small import *
    from .._base_.runtime import *
    from .._base_.schedules.adamw_24e import *

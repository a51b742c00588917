"""Upstream's BEVFormer base, boxes only, on nuScenes.

Source: bevformer_base.py of fundamentalvision/BEVFormer (Li et al., ECCV 2022).
Hardware: 8 GPUs with one sample each (upstream: 28.5 GB each).
Expected time: not run (upstream: 56 hours on 8 A100).
Expected NDS / mIoU: not run (upstream: NDS 0.517, mAP 0.416).
Command: bash tools/dist_train.sh bevformer_official_base 8 --set model.backbone_weights=r101_dcn.safetensors
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.nuscenes_det_1600x900 import *
    from .._base_.models.bevformer_official_base import *
    from .._base_.runtime import *
    from .._base_.schedules.adamw_24e import *

"""Upstream's BEVFormer base without history: each frame on its own, in training and in evaluation.

Source: the static variant (-S) of BEVFormer (Li et al., ECCV 2022), for which no config was released; upstream's
`video_test_mode=False` leaves the history out of evaluation only.
Hardware: 8 GPUs with one sample each.
Expected time: not run.
Expected NDS / mIoU: not run (paper: NDS 0.448, mAP 0.375).
Command: bash tools/dist_train.sh bevformer_official_base_static 8 --set model.backbone_weights=r101_dcn.safetensors
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.nuscenes_det_1600x900 import *
    from .._base_.models.bevformer_official_base import *
    from .._base_.runtime import *
    from .._base_.schedules.adamw_24e import *

model.update(use_history=False)
train_dataloader.dataset.update(queue_length=1)  # no history image is decoded

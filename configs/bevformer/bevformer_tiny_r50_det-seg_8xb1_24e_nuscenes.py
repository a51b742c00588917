"""BEVFormer tiny with a map head, on nuScenes.

Source: BEVFormer's bevformer_tiny.py (Li et al., ECCV 2022) and the map head of
Bin-ze/BEVFormer_segmentation_detection; without GridMask.
Hardware: 8 GPUs with at least 12 GB each (upstream's log: 8.3 GB for boxes alone).
Expected time: about 2 days on 8 GPUs (upstream's log for boxes alone).
Expected NDS / mIoU: not run (upstream's tiny, boxes alone: NDS 0.354).
Command: bash tools/dist_train.sh bevformer_tiny 8 --set model.backbone_weights=resnet50.safetensors
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.nuscenes import *
    from .._base_.models.bevformer_tiny import *
    from .._base_.runtime import *
    from .._base_.schedules.adamw_24e import *

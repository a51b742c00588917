"""BEVFormer tiny with a map head, on real nuScenes v1.0-mini: the recipe of trainval, to try it on few data.

Source: BEVFormer's bevformer_tiny.py (Li et al., ECCV 2022) and the map head of
Bin-ze/BEVFormer_segmentation_detection; without GridMask. Ten scenes are too few to learn from: scores say that the
pieces work, not how good the model is.
Hardware: 1 GPU with at least 12 GB.
Expected time: not run (about 7,800 steps).
Expected NDS / mIoU: not run.
Command: perception train bevformer_tiny_mini --data-root data/nuscenes
    --set model.backbone_weights=resnet50.safetensors optim_wrapper.optimizer.lr=2.5e-5
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.nuscenes_mini import *
    from .._base_.models.bevformer_tiny import *
    from .._base_.runtime import *
    from .._base_.schedules.adamw_24e import *

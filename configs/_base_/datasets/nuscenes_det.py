"""nuScenes v1.0-trainval for boxes alone, at 800 × 450: upstream's tiny.

Source: projects/configs/bevformer/bevformer_tiny.py of fundamentalvision/BEVFormer. Deviations: images are resized as
8-bit values and normalised after it (upstream first normalises, then resizes; padding is zero in both), no GridMask, no
random swap of colour channels, and history never comes from another scene.
"""

from mmengine.config import read_base

with read_base():
    from .nuscenes import *

train_dataloader.dataset.pipeline.pop(-2)  # LoadBEVMap
val_dataloader.dataset.pipeline.pop(-2)
test_dataloader = val_dataloader
val_evaluator = val_evaluator[:1]  # the boxes' metric
test_evaluator = val_evaluator

"""nuScenes v1.0-trainval for boxes alone, at 800 × 450: upstream's tiny.

Source: projects/configs/bevformer/bevformer_tiny.py of fundamentalvision/BEVFormer. Deviations: images are resized as
8-bit values and normalised after it (upstream first normalises, then resizes; padding is zero in both), no GridMask, no
random swap of colour channels, and history never comes from another scene. The motion is upstream's, as its checkpoints
have seen it; for a training from scratch `upstream_can_bus=False` is better off.
"""

from mmengine.config import read_base

with read_base():
    from .nuscenes import *

train_dataloader.dataset.update(upstream_can_bus=True)
train_dataloader.dataset.pipeline.pop(-2)  # LoadBEVMap
train_dataloader.dataset.pipeline[0].update(target_size=None)  # decoded in full, then resized, as upstream
val_dataloader.dataset.update(upstream_can_bus=True)
val_dataloader.dataset.pipeline.pop(-2)
val_dataloader.dataset.pipeline[0].update(target_size=None)
test_dataloader = val_dataloader
val_evaluator = val_evaluator[:1]  # the boxes' metric
test_evaluator = val_evaluator

"""nuScenes v1.0-trainval for boxes alone, at 0.8 of the full size: upstream's small."""

from mmengine.config import read_base

with read_base():
    from .nuscenes_det import *

_image_size = (1280, 720)  # width, height

train_dataloader.dataset.pipeline[1].update(size=_image_size)
val_dataloader.dataset.pipeline[1].update(size=_image_size)
test_dataloader = val_dataloader

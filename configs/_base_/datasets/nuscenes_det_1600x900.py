"""nuScenes v1.0-trainval for boxes alone, at full size, with a queue of 4: upstream's base."""

from mmengine.config import read_base

with read_base():
    from .nuscenes_det import *

train_dataloader.dataset.update(queue_length=4)
train_dataloader.dataset.pipeline.pop(1)  # ResizeMultiView
val_dataloader.dataset.pipeline.pop(1)
test_dataloader = val_dataloader

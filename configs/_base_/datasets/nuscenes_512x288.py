"""nuScenes v1.0-trainval at 512 × 288, 0.32 of the full size: both sides are multiples of 32, so nothing is padded.

Source: the input size is that of wPCGrad's BEVFormer-Small; the rest as `nuscenes.py`, a queue of 3 too.
"""

from mmengine.config import read_base

with read_base():
    from .nuscenes import *

_image_size = (512, 288)  # width, height

train_dataloader.dataset.pipeline[0].update(target_size=_image_size)
train_dataloader.dataset.pipeline[1].update(size=_image_size)
val_dataloader.dataset.pipeline[0].update(target_size=_image_size)
val_dataloader.dataset.pipeline[1].update(size=_image_size)
test_dataloader = val_dataloader

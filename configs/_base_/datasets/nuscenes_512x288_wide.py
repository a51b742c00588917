"""nuScenes v1.0-trainval at 512 × 288 with the map over the range of the boxes, ±51.2 m both ways, at 0.32 m per pixel.

Source: the map of wPCGrad's BEVFormer-Unified, whose resolution the paper does not give: 0.32 m is a sixteenth of its
patches here. Lines are as wide in metres as on the usual map. mIoU is not comparable with that map's.
"""

from mmengine.config import read_base

with read_base():
    from .nuscenes_512x288 import *

_map_grid = dict(x_range=(-51.2, 51.2), y_range=(-51.2, 51.2), resolution=0.32)

train_dataloader.dataset.pipeline[-2].update(grid=_map_grid)
val_dataloader.dataset.pipeline[-2].update(grid=_map_grid)
test_dataloader = val_dataloader
val_evaluator[1].update(map_grid=_map_grid)
test_evaluator = val_evaluator

"""The synthetic nuScenes world with the map over the range of nano's boxes, at 0.32 m per pixel."""

from mmengine.config import read_base

with read_base():
    from .nuscenes_synthetic import *

_map_grid = dict(x_range=(-25.6, 25.6), y_range=(-51.2, 51.2), resolution=0.32)

train_dataloader.dataset.pipeline[-2].update(grid=_map_grid)
val_dataloader.dataset.pipeline[-2].update(grid=_map_grid)
test_dataloader = val_dataloader
val_evaluator[1].update(map_grid=_map_grid)
test_evaluator = val_evaluator

"""The synthetic nuScenes world for BEVFormer nano: 352 × 144 images, a queue of 2, mirrored in BEV at random.

The top 54 rows of the 352 × 198 images are sky and are cut. No photometric distortion: the world has few lightings, and
the demo's training is too short to profit from more.

Data: `perception data synthesize --out data/nuscenes-synthetic --scenes 10 --seed 0`, then
`perception data prepare data/nuscenes-synthetic`.
"""

from mmengine.config import read_base

from perception.datasets import (
    BEVRandomFlip,
    CropTopMultiView,
    LoadBEVMap,
    LoadMultiViewImages,
    ObjectRangeFilter,
    PackBEVInputs,
    ResizeMultiView,
)

with read_base():
    from .nuscenes import *

_data_root = "data/nuscenes-synthetic"
_image_size = (352, 198)  # width, height
_sky_rows = 54

train_dataloader.update(
    batch_size=1,
    num_workers=1,
    dataset=dict(
        data_root=_data_root,
        ann_file="perception_index/v1.0-mini_mini_train.json",
        queue_length=2,
        pipeline=[
            dict(type=LoadMultiViewImages, target_size=_image_size),
            dict(type=ResizeMultiView, size=_image_size),
            dict(type=CropTopMultiView, rows=_sky_rows),
            dict(type=BEVRandomFlip, prob=0.5, mirror_images=True),
            dict(type=ObjectRangeFilter, pc_range=(-25.6, -51.2, -2.3, 25.6, 51.2, 2.7)),
            dict(type=LoadBEVMap, grid=_map_grid),
            dict(type=PackBEVInputs),
        ],
    ),
)
val_dataloader.update(
    batch_size=1,
    num_workers=1,
    dataset=dict(
        data_root=_data_root,
        ann_file="perception_index/v1.0-mini_mini_val.json",
        pipeline=[
            dict(type=LoadMultiViewImages, target_size=_image_size),
            dict(type=ResizeMultiView, size=_image_size),
            dict(type=CropTopMultiView, rows=_sky_rows),
            dict(type=LoadBEVMap, grid=_map_grid),
            dict(type=PackBEVInputs),
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator[0].update(data_root=_data_root, version="v1.0-mini")
test_evaluator = val_evaluator

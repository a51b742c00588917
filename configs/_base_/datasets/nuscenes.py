"""nuScenes v1.0-trainval for BEVFormer: six cameras at half size, boxes and the ±30 m × ±15 m map.

Source: BEVFormer's nuScenes pipeline (tiny's 0.5 scale, queue of 3); the map is that of BEVFormer's det + seg fork.
Data: link nuScenes to data/nuscenes, then `perception data prepare data/nuscenes --version v1.0-trainval`.
"""

from mmengine.dataset import pseudo_collate

from perception.datasets import (
    LoadBEVMap,
    LoadMultiViewImages,
    NuScenesBEVDataset,
    ObjectRangeFilter,
    PackBEVInputs,
    PhotometricDistortion,
    ResizeMultiView,
)
from perception.engine import EpochSampler, SceneSampler
from perception.evaluation import BEVSegMetric, NuScenesDetectionMetric

_data_root = "data/nuscenes"
_version = "v1.0-trainval"
_image_size = (800, 450)  # width, height
_map_grid = dict(x_range=(-15.0, 15.0), y_range=(-30.0, 30.0), resolution=0.15)

train_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type=EpochSampler, shuffle=True),
    collate_fn=dict(type=pseudo_collate),
    dataset=dict(
        type=NuScenesBEVDataset,
        data_root=_data_root,
        ann_file="perception_index/v1.0-trainval_train.json",
        queue_length=3,
        pipeline=[
            dict(type=LoadMultiViewImages, target_size=_image_size),
            dict(type=ResizeMultiView, size=_image_size),
            dict(type=PhotometricDistortion),
            dict(type=ObjectRangeFilter, pc_range=(-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)),
            dict(type=LoadBEVMap, grid=_map_grid),
            dict(type=PackBEVInputs),
        ],
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type=SceneSampler),
    collate_fn=dict(type=pseudo_collate),
    dataset=dict(
        type=NuScenesBEVDataset,
        data_root=_data_root,
        ann_file="perception_index/v1.0-trainval_val.json",
        test_mode=True,
        pipeline=[
            dict(type=LoadMultiViewImages, target_size=_image_size),
            dict(type=ResizeMultiView, size=_image_size),
            dict(type=LoadBEVMap, grid=_map_grid),
            dict(type=PackBEVInputs),
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator = [
    dict(type=NuScenesDetectionMetric, data_root=_data_root, version=_version),
    dict(type=BEVSegMetric, map_grid=_map_grid),
]
test_evaluator = val_evaluator

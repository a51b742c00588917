"""nuScenes v1.0-mini with the pipelines of trainval: 323 training and 81 validation samples.

Data: unpack v1.0-mini and the map expansion v1.3 into data/nuscenes (or name the folder by --data-root), then
`perception data prepare data/nuscenes --version v1.0-mini`.
"""

from mmengine.config import read_base

with read_base():
    from .nuscenes import *

train_dataloader.dataset.update(ann_file="perception_index/v1.0-mini_mini_train.json")
val_dataloader.dataset.update(ann_file="perception_index/v1.0-mini_mini_val.json")
test_dataloader = val_dataloader
val_evaluator[0].update(version="v1.0-mini")
test_evaluator = val_evaluator

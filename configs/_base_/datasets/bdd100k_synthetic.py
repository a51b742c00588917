"""The synthetic BDD100K world for FCOS nano: 256 × 144 images, mirrored at random, half a batch of 8 of each set.

Data: `perception data synthesize --format bdd100k --out data/bdd100k-synthetic`, then
`perception data prepare data/bdd100k-synthetic`.
"""

from mmengine.config import read_base

from perception.datasets import LoadImage2D, LoadSegMask, PackImageInputs, RandomFlipImage, ResizeImage

with read_base():
    from .bdd100k import *

_data_root = "data/bdd100k-synthetic"
_image_size = (256, 144)  # width, height

train_dataloader.update(
    batch_size=8,
    num_workers=1,
    dataset=dict(
        data_root=_data_root,
        pipeline=[
            dict(type=LoadImage2D, target_size=_image_size),
            dict(type=LoadSegMask),
            dict(type=ResizeImage, size=_image_size, interpolation="area"),
            dict(type=RandomFlipImage, prob=0.5),
            dict(type=PackImageInputs),
        ],
    ),
)
val_dataloader.update(
    batch_size=8,
    num_workers=1,
    dataset=dict(
        data_root=_data_root,
        pipeline=[
            dict(type=LoadImage2D, target_size=_image_size),
            dict(type=LoadSegMask),
            dict(type=ResizeImage, size=_image_size, interpolation="area"),
            dict(type=PackImageInputs),
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator[0].update(data_root=_data_root)
val_evaluator[1].update(data_root=_data_root)
test_evaluator = val_evaluator

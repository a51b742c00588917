"""BDD100K for FCOS: boxes of 70,000 images and masks of 7,000 others in one stream, half a batch of each.

Source: MCLGS (Igarashi and Yoneji 2022), section 4.1.2: batches of 16 of both sets. It gives neither the make-up of a
batch nor the size of an image: equal shares are this project's choice, sizes and mirroring are those of FCOS-RT
(AdelaiDet's FCOS_RT/Base-FCOS_RT.yaml: short edges 256 to 608, long edge at most 900; tested at 512 and at most 736).
Data: link BDD100K to data/bdd100k, then `perception data prepare data/bdd100k`.
"""

from mmengine.dataset import pseudo_collate

from perception.datasets import (
    BDD100KDataset,
    LoadImage2D,
    LoadSegMask,
    PackImageInputs,
    RandomFlipImage,
    ResizeImage,
)
from perception.engine import MixedLabelSampler, SceneSampler
from perception.evaluation import BoxAPMetric, SemSegMetric

_data_root = "data/bdd100k"

train_dataloader = dict(
    batch_size=16,
    num_workers=8,
    persistent_workers=True,
    # Equal shares of all kinds of labels that the data set gives; ratio=dict(det=3, seg=1) would be other ones.
    sampler=dict(type=MixedLabelSampler, ratio=None),
    collate_fn=dict(type=pseudo_collate),
    dataset=dict(
        type=BDD100KDataset,
        data_root=_data_root,
        ann_file="perception_index/bdd100k_train.json",
        pipeline=[
            dict(type=LoadImage2D),
            dict(type=LoadSegMask),
            dict(type=ResizeImage, short_edges=tuple(range(256, 609, 32)), max_long_edge=900),
            dict(type=RandomFlipImage, prob=0.5),
            dict(type=PackImageInputs),
        ],
    ),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type=SceneSampler),
    collate_fn=dict(type=pseudo_collate),
    dataset=dict(
        type=BDD100KDataset,
        data_root=_data_root,
        ann_file="perception_index/bdd100k_val.json",
        test_mode=True,
        pipeline=[
            dict(type=LoadImage2D),
            dict(type=LoadSegMask),
            dict(type=ResizeImage, short_edges=(512,), max_long_edge=736),
            dict(type=PackImageInputs),
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator = [
    dict(type=BoxAPMetric, data_root=_data_root),
    dict(type=SemSegMetric, data_root=_data_root),
]
test_evaluator = val_evaluator

"""A world for the image model at its smallest: random images of which each is labelled for one task, both or none."""

from collections.abc import Sequence
from typing import Any

import toy_world
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from torch.optim import SGD

from perception.engine import BalancedOptimWrapper, EpochSampler
from perception.evaluation.gathered_metric import GatheredMetric
from perception.structures.driving_2d import BDD_BOX_CLASSES
from tests.models.images import image_config, image_item

LABELS: dict[str, dict[str, Any]] = {
    "both": {},
    "det": {"mask": False},
    "seg": {"boxes": None},
    "none": {"boxes": None, "mask": False},
    "empty": {"boxes": 0, "mask": False},
    "pseudo": {"boxes": None, "pseudo_boxes": 3, "mask": False, "pseudo_mask": True},
    "gt-pseudo": {"mask": False, "pseudo_mask": True},
}


class ImageDataset(BaseDataset):
    METAINFO = {"classes": BDD_BOX_CLASSES}

    def __init__(self, *, labels: Sequence[str] = ("det", "seg"), repeats: int = 3) -> None:
        self.labels = tuple(labels) * repeats
        super().__init__(ann_file="", serialize_data=False)

    def load_data_list(self) -> list[dict]:
        return [{"index": index} for index in range(len(self.labels))]

    def __getitem__(self, index: int) -> dict:
        return image_item(index, **LABELS[self.labels[index]])


class ImageMetric(GatheredMetric):
    def process_sample(self, sample: Any) -> Any:
        return [
            float(sample["pred_instances"]["scores"].sum()),
            float(sample["pred_sem_seg"]["sem_seg"].sum()),
        ]

    def compute_metrics(self, results: dict[str, Any]) -> dict[str, Any]:
        scores, classes = zip(*results.values(), strict=True)
        return {"AP": sum(scores) / len(scores), "mIoU": sum(classes) / len(classes), "count": len(results)}


def config(work_dir: str, **changes: Any) -> Config:
    """The toy world's config around the small image model; a key with '__' reaches into nested dicts."""
    loader = dict(sampler=dict(type=EpochSampler, shuffle=False), num_workers=0)
    own: dict[str, Any] = dict(
        model=image_config(),
        train_dataloader=dict(dataset=dict(type=ImageDataset), batch_size=1, **loader),
        train_cfg=dict(by_epoch=False, max_iters=3, val_interval=0),
        optim_wrapper=dict(type=BalancedOptimWrapper, optimizer=dict(type=SGD, lr=1.0)),
        param_scheduler=None,
        val_dataloader=dict(dataset=dict(type=ImageDataset, repeats=1), batch_size=1, **loader),
        val_evaluator=dict(type=ImageMetric),
    )
    return toy_world.config(work_dir, **{**own, **changes})

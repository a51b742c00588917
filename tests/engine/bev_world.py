"""A world for the real model at its smallest: BEVFormer with batch norm, two frames, random images."""

from typing import Any

import torch
import toy_world
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from torch.optim import SGD, AdamW

from perception.engine import BalancedOptimWrapper
from perception.evaluation.gathered_metric import GatheredMetric
from perception.structures import CLASS_NAMES
from tests.models.small import make_item, small_config

DETECTION_STEP = {
    "optim_wrapper": dict(type=BalancedOptimWrapper, optimizer=dict(type=SGD, lr=1.0)),
    "train_dataloader__dataset__empty": [1],
    "train_dataloader__dataset__num_samples": 2,
    "model__seg_head": None,
    "model__img_backbone__norm_eval": True,
    "val_dataloader": None,
    "val_evaluator": None,
    "val_cfg": None,
}
"""One step of detection alone, of which one of the two samples has no box and nothing depends on batch norm."""


class BevDataset(BaseDataset):
    METAINFO = {"classes": CLASS_NAMES}

    def __init__(self, *, num_samples: int = 6, empty: Any = (), test_mode: bool = False) -> None:
        self.num_samples, self.empty = num_samples, set(empty)
        super().__init__(ann_file="", test_mode=test_mode, serialize_data=False)

    def load_data_list(self) -> list[dict]:
        return [{"index": index} for index in range(self.num_samples)]

    def scene_tokens(self) -> list[str]:
        return [f"scene{index // 2}" for index in range(self.num_samples)]

    def __getitem__(self, index: int) -> dict:
        num_boxes = 0 if index in self.empty else 3 + index
        return make_item(index, num_frames=1 if self.test_mode else 2, num_boxes=num_boxes)


class BevMetric(GatheredMetric):
    def process_sample(self, sample: Any) -> Any:
        return float(sample["pred_instances_3d"]["scores_3d"].sum() + sample["pred_bev_seg"]["sem_seg"].sum())

    def compute_metrics(self, results: dict[str, Any]) -> dict[str, Any]:
        return {"mIoU": sum(results.values()) / len(results), "count": len(results)}


def config(work_dir: str, **changes: Any) -> Config:
    """The toy world's config around the real model; a key with '__' reaches into nested dicts."""
    own: dict[str, Any] = dict(
        model=small_config(encoder={"num_layers": 1}),
        train_dataloader__dataset=dict(type=BevDataset),
        train_dataloader__batch_size=1,
        train_cfg=dict(by_epoch=False, max_iters=3, val_interval=2),
        optim_wrapper=dict(type=BalancedOptimWrapper, optimizer=dict(type=AdamW, lr=1e-3)),
        param_scheduler=None,
        val_dataloader__dataset=dict(type=BevDataset, test_mode=True, num_samples=3),
        val_evaluator=dict(type=BevMetric),
    )
    return toy_world.config(work_dir, **{**own, **changes})


def running_statistics(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The batch norms' running means and variances of a state dict."""
    return {name: value for name, value in state.items() if ".running_" in name}

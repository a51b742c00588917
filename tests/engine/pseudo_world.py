"""A small FCOS model and the small synthetic BDD100K world, as whole configs."""

from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from safetensors.torch import save_file
from torch.optim import SGD

from perception.datasets import BDD100KDataset, LoadImage2D, LoadSegMask, PackImageInputs, ResizeImage
from perception.engine import BalancedOptimWrapper, EpochSampler, SceneSampler
from perception.evaluation import BoxAPMetric, SemSegMetric
from perception.models import FCOSHead2D, PanopticFPNHead
from perception.registry import MODELS
from tests.engine import toy_world
from tests.models.images import PYRAMID, RANGES, image_config

SIZE = (160, 96)


def fcos_config(
    root: Path, index: Path, *, heads: tuple[str, ...] = ("det", "seg"), **changes: Any
) -> Config:
    """The small model with some heads, trained on all frames and scored by the real metrics."""
    box = {"type": FCOSHead2D, "stacked_convs": 1, "regress_ranges": RANGES, "num_classes": 10, **PYRAMID}
    seg = {"type": PanopticFPNHead, "num_classes": 19, "common_stride": 4, **PYRAMID}
    steps = [
        {"type": LoadImage2D},
        {"type": LoadSegMask},
        {"type": ResizeImage, "size": SIZE},
        {"type": PackImageInputs},
    ]
    dataset = {"type": BDD100KDataset, "data_root": str(root), "pipeline": steps}
    model = {
        **image_config(),
        "box_head": box if "det" in heads else None,
        "seg_head": seg if "seg" in heads else None,
    }
    loader = {"batch_size": 2, "num_workers": 0}
    metrics = {
        "det": {"type": BoxAPMetric, "data_root": str(root)},
        "seg": {"type": SemSegMetric, "data_root": str(root)},
    }
    own: dict[str, Any] = {
        "model": model,
        "train_dataloader": {
            "dataset": {**dataset, "ann_file": str(index / "bdd100k_train.json")},
            "sampler": {"type": EpochSampler},
            **loader,
        },
        "train_cfg": {"by_epoch": False, "max_iters": 2, "val_interval": 2},
        "optim_wrapper": {"type": BalancedOptimWrapper, "optimizer": {"type": SGD, "lr": 1e-3}},
        "param_scheduler": None,
        "val_dataloader": {
            "dataset": {**dataset, "ann_file": str(index / "bdd100k_val.json"), "test_mode": True},
            "sampler": {"type": SceneSampler},
            **loader,
        },
        "val_evaluator": [metrics[head] for head in heads],
    }
    return toy_world.config("unused", **{**own, **changes})


def write_weights(cfg: Config, path: Path, *, seed: int = 0) -> Path:
    """Random weights that predict something: boxes above any threshold, and pixels of which some are sure."""
    torch.manual_seed(seed)
    model = MODELS.build(cfg.model)
    model.init_weights()
    with torch.no_grad():
        if model.box_head is not None:
            model.box_head.conv_cls.weight.normal_(std=0.5)
            model.box_head.conv_cls.bias.fill_(-1.5)
            model.box_head.conv_centerness.bias.fill_(1.0)
            model.box_head.conv_reg.bias.fill_(1.5)
        if model.seg_head is not None:
            model.seg_head.conv_logits.weight.normal_(std=2.0)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, str(path))
    return path

"""A toy world: two tasks, dropout, batch norm, augmentation from the sample's own generator."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.model import BaseModel
from mmengine.optim import CosineAnnealingLR, LinearLR
from mmengine.structures import BaseDataElement
from torch import nn

from perception.balancing import SharedFeatures, TaskLosses
from perception.checkpoint import load_checkpoint
from perception.engine import BalancedOptimWrapper, EpochSampler, SceneSampler, read_log
from perception.engine.collectives import rank
from perception.evaluation.gathered_metric import GatheredMetric
from perception.utils import stable_seed

NUM_FEATURES = 6


class ToyDataset(BaseDataset):
    METAINFO = {"classes": ("car", "bus")}

    def __init__(
        self,
        *,
        num_samples: int = 10,
        num_scenes: int = 3,
        seg_every: int = 1,
        bad: Any = None,
        indices: int | None = None,
    ) -> None:
        self.num_samples, self.num_scenes, self.seg_every, self.epoch = num_samples, num_scenes, seg_every, 0
        self.bad = {int(index): kind for index, kind in (bad or {}).items()}
        super().__init__(ann_file="", indices=indices, serialize_data=False)

    def load_data_list(self) -> list[dict]:
        # Scenes of length 1, 2, ... and the rest in the last one.
        tokens = [f"scene{scene}" for scene in range(self.num_scenes) for _ in range(scene + 1)]
        tokens += [tokens[-1]] * self.num_samples
        return [{"index": i, "scene_token": tokens[i]} for i in range(self.num_samples)]

    def scene_tokens(self) -> list[str]:
        return [self.get_data_info(i)["scene_token"] for i in range(len(self))]

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict:
        info = self.get_data_info(index)
        fixed = np.random.default_rng(stable_seed(1, info["index"]))
        x = fixed.normal(size=NUM_FEATURES)
        y = np.array([x.sum(), (x**2).sum()])
        rng = np.random.default_rng(stable_seed(0, self.epoch, info["index"]))
        if not self.test_mode:
            x = x + 0.1 * rng.normal(size=NUM_FEATURES)
        sample = BaseDataElement(
            metainfo={
                "sample_token": f"sample{info['index']}",
                "scene_token": info["scene_token"],
                "has_seg": info["index"] % self.seg_every == 0,
                "epoch": self.epoch,
                "bad": self.bad.get(info["index"], ""),
            },
            target=torch.tensor(y, dtype=torch.float32),
        )
        return {"inputs": torch.tensor(x, dtype=torch.float32), "data_samples": sample}


class _Poison(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):  # noqa: ANN001, ANN205
        return x.clone()

    @staticmethod
    def backward(ctx, grad):  # noqa: ANN001, ANN205
        return grad * float("nan")


class Overflow(torch.autograd.Function):
    """Stands for an operation whose gradient overflows beyond `limit`."""

    @staticmethod
    def forward(ctx, x, limit):  # noqa: ANN001, ANN205
        ctx.limit = limit
        return x.clone()

    @staticmethod
    def backward(ctx, grad):  # noqa: ANN001, ANN205
        return torch.where(grad.abs() > ctx.limit, torch.inf, grad), None


class ToyModel(BaseModel):
    task_names = ("det", "seg")
    kpi_metrics = {"det": ("mIoU",), "seg": ("mIoU", "count")}

    def __init__(self, *, width: int = 8, dropout: float = 0.3, batch_norm: bool = True) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Linear(NUM_FEATURES, width),
            nn.BatchNorm1d(width) if batch_norm else nn.Identity(),
            nn.ReLU(),
            nn.Dropout(dropout),
        )
        self.det = nn.Linear(width, 1)
        self.seg = nn.Linear(width, 1)
        self.unused = nn.Linear(2, 2)

    def forward(self, inputs, data_samples=None, mode="tensor"):  # noqa: ANN001, ANN201
        features = self.trunk(torch.stack(list(inputs)))
        det, seg = self.det(features)[:, 0], self.seg(features)[:, 0]
        if mode == "predict":
            for sample, d, e in zip(data_samples, det, seg, strict=True):
                sample.prediction = d + e
            return data_samples
        target = torch.stack([s.target for s in data_samples])
        flags = {s.bad for s in data_samples}
        losses = {
            "det.loss_l1": (det - target[:, 0]).abs().mean(),
            "det.num_targets": torch.tensor(float(len(det))),
        }
        has_seg = torch.tensor([s.has_seg for s in data_samples])
        if bool(has_seg.any()):
            if "grad" in flags:
                seg = _Poison.apply(seg)
            if "large" in flags:
                seg = Overflow.apply(seg, 500.0)
            losses["seg.loss_ce"] = ((seg - target[:, 1])[has_seg] ** 2).mean()
            if "loss" in flags:
                losses["seg.loss_ce"] = losses["seg.loss_ce"] * float("nan")
            where = {"", " on rank 0"} if rank() == 0 else {""}
            if flags & {f"twin{place}" for place in where}:
                losses["seg.loss_ce"] = losses["det.loss_l1"] * 1.0
            if flags & {f"loose{place}" for place in where}:
                losses["seg.loss_ce"] = losses["seg.loss_ce"].detach()
            losses["seg.num_targets"] = has_seg.sum().float()
        return losses

    def parse_losses(self, losses):  # noqa: ANN001, ANN201
        terms = OrderedDict((k, v) for k, v in losses.items() if ".loss" in k)
        tasks: dict[str, torch.Tensor] = {}
        for key, value in terms.items():
            tasks[key.split(".")[0]] = tasks.get(key.split(".")[0], 0) + value
        counts = {k.split(".")[0]: v for k, v in losses.items() if k.endswith("num_targets")}
        parsed = TaskLosses(tasks, counts, self.task_names)
        terms["loss"] = sum(tasks.values())
        return parsed, terms


class CutToyModel(ToyModel):
    """Nothing is idle, and gradients can be taken at the features or the trunk's layer. 11 width + 2 parameters."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        del self.unused
        self.shared_features = SharedFeatures()
        self.trunk.register_forward_hook(lambda module, args, output: self.shared_features(output)[0])

    def last_shared_parameters(self) -> list[nn.Parameter]:
        return list(self.trunk[0].parameters())


class ToyMetric(GatheredMetric):
    def process_sample(self, sample: Any) -> Any:
        return (sample["scene_token"], float(sample["prediction"]))

    def compute_metrics(self, results: dict[str, Any]) -> dict[str, Any]:
        return {"mIoU": sum(p for _, p in results.values()) / len(results), "count": len(results)}


def config(work_dir: str, **changes: Any) -> Config:
    """A whole config; a key with '__' reaches into nested dicts."""
    cfg = dict(
        model=dict(type=ToyModel),
        work_dir=str(work_dir),
        train_dataloader=dict(
            dataset=dict(type=ToyDataset), sampler=dict(type=EpochSampler), batch_size=2, num_workers=0
        ),
        train_cfg=dict(by_epoch=False, max_iters=12, val_interval=4),
        optim_wrapper=dict(
            type=BalancedOptimWrapper,
            optimizer=dict(type=torch.optim.AdamW, lr=1e-2),
            clip_grad=dict(max_norm=35.0),
        ),
        param_scheduler=[
            dict(type=LinearLR, start_factor=0.1, by_epoch=False, begin=0, end=4),
            dict(type=CosineAnnealingLR, by_epoch=False, begin=4, T_max=8),
        ],
        val_dataloader=dict(
            dataset=dict(type=ToyDataset), sampler=dict(type=SceneSampler), batch_size=1, num_workers=0
        ),
        val_cfg=dict(),
        val_evaluator=dict(type=ToyMetric),
        visualizer=dict(vis_backends=[]),
        randomness=dict(seed=3),
    )
    for key, value in changes.items():
        target, *path = cfg, *key.split("__")
        for part in path[:-1]:
            target = target[part]
        target[path[-1]] = value
    return Config(cfg)


def fingerprint(run_folder: Path) -> dict[str, Any]:
    """Everything of a run's newest checkpoint and log that must be bit-equal between two ways of getting there."""
    checkpoint = load_checkpoint(run_folder)
    keys = ("step", "epoch", "lr", "loss", "losses", "tasks", "grad_norm", "skipped")
    lines = read_log(run_folder / "log.jsonl")
    return {
        "model": checkpoint.model_state,
        "optimizer": checkpoint.optimizer_state,
        "rng": checkpoint.rng_states,
        "schedules": checkpoint.state["schedules"],
        "sampler": checkpoint.state["sampler"],
        "log": [{key: line[key] for key in keys} for line in lines if line["kind"] == "train"],
        "val": [(line["step"], line["metrics"]) for line in lines if line["kind"] == "val"],
    }


def as_tensors(found: Any) -> Any:
    """Nested dicts, lists and numbers as nested dicts of float64 tensors, None left out."""
    if isinstance(found, dict):
        return {str(key): as_tensors(value) for key, value in found.items() if value is not None}
    if isinstance(found, list | tuple):
        return {str(index): as_tensors(value) for index, value in enumerate(found) if value is not None}
    return torch.as_tensor(found).double()


def assert_same(left: Any, right: Any, name: str = "") -> None:
    """Bit-equality of nested dicts, lists, tensors and numbers."""
    assert type(left) is type(right), (name, type(left), type(right))
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right), name
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), (name, left.keys() ^ right.keys())
        for key in left:
            assert_same(left[key], right[key], f"{name}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), (name, len(left), len(right))
        for index, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_same(a, b, f"{name}[{index}]")
    else:
        assert left == right, (name, left, right)

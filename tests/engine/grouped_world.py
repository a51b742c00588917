"""The toy world with three tasks in two groups, for methods that run the model once per group."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import toy_world
from mmengine.config import Config
from mmengine.model import BaseModel
from torch import Tensor, nn

from perception.balancing import RotoGrad, SharedFeatures, TaskStreams
from perception.evaluation.gathered_metric import GatheredMetric
from perception.models.task_losses import group_losses

GROUPS = {"det": ("cls", "box"), "seg": ("seg",)}
CONNECTION = {"name": "connection_strength", "groups": GROUPS, "trunk": ("trunk",), "scales": {"seg": 2.0}}
WIDTH = 8


class GroupedToyModel(BaseModel):
    """Two linear layers with norms as a trunk, a linear head per task; in float64, as far as it is not said."""

    task_names = ("cls", "box", "seg")
    kpi_metrics = {"cls": ("mIoU",), "box": ("mIoU",), "seg": ("mIoU",)}

    def __init__(
        self,
        *,
        dropout: float = 0.0,
        batch_norm: bool = True,
        is_double: bool = True,
    ) -> None:
        super().__init__()
        norm = nn.BatchNorm1d if batch_norm else nn.LayerNorm
        layers: list[nn.Module] = []
        for size in (toy_world.NUM_FEATURES, WIDTH):
            layers += [nn.Linear(size, WIDTH), norm(WIDTH), nn.ReLU(), nn.Dropout(dropout)]
        self.trunk = nn.Sequential(*layers)
        self.heads = nn.ModuleDict({task: nn.Linear(WIDTH, 1) for task in self.task_names})
        if is_double:
            self.double()
        self.task_streams = TaskStreams()
        self.shared_features, self.shared_width = SharedFeatures(), WIDTH
        self.rotations: RotoGrad | None = None
        self._only: tuple[str, ...] = self.task_names

    @contextmanager
    def only_tasks(self, tasks: Sequence[str]) -> Iterator[None]:
        before, self._only = self._only, tuple(tasks)
        try:
            yield
        finally:
            self._only = before

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = "tensor") -> Any:
        x = torch.stack(list(inputs)).to(self.heads["cls"].weight.dtype)
        (features,) = self.shared_features(self.trunk(self.task_streams.repeat({"x": x})["x"]))
        reads = {task: self.task_streams.rows(features, task) for task in self._only}
        if self.rotations is not None:
            reads = {task: self.rotations.rotate(rows, task) for task, rows in reads.items()}
        outputs = {task: self.heads[task](rows)[:, 0] for task, rows in reads.items()}
        if mode == "predict":
            results = [sample.new() for sample in data_samples]
            for task, values in outputs.items():
                for sample, value in zip(results, values, strict=True):
                    setattr(sample, f"pred_{task}", value)
            return results
        losses: dict[str, Tensor] = {}
        has_seg = torch.tensor([bool(sample.has_seg) for sample in data_samples])
        targets = torch.stack([sample.target for sample in data_samples]).to(x)
        bad = {sample.bad for sample in data_samples}
        for task, values in outputs.items():
            mask = has_seg if task == "seg" else torch.ones_like(has_seg)
            if not bool(mask.any()):
                continue
            wanted = targets[:, 1] if task == "seg" else targets[:, 0] * (2.0 if task == "box" else 1.0)
            loss = (values - wanted)[mask].square().mean()
            if task == "seg" and "loss" in bad:
                loss = loss * torch.nan
            if task == "seg" and "grad" in bad:
                loss = toy_world._Poison.apply(loss)
            losses[f"{task}.loss_l2"] = loss
            losses[f"{task}.num_targets"] = mask.sum().double()
        return losses

    def parse_losses(self, losses: dict[str, Tensor]) -> Any:
        return group_losses(losses, self.task_names)


class GroupedToyMetric(GatheredMetric):
    def process_sample(self, sample: Any) -> Any:
        return [float(sample[f"pred_{task}"]) for task in GroupedToyModel.task_names]

    def compute_metrics(self, results: dict[str, Any]) -> dict[str, Any]:
        columns = list(zip(*results.values(), strict=True))
        metrics = {
            task: sum(column) for task, column in zip(GroupedToyModel.task_names, columns, strict=True)
        }
        return {**metrics, "mIoU": sum(metrics.values()), "count": len(results)}


def config(work_dir: str, *, phases: str = "mixed", balancer: Any = None, **changes: Any) -> Config:
    """The toy world's config with connection strength; a key with '__' reaches into nested dicts."""
    own: dict[str, Any] = dict(
        model=dict(type=GroupedToyModel),
        val_evaluator=dict(type=GroupedToyMetric),
        param_scheduler=None,
        optim_wrapper__balancer=balancer or {**CONNECTION, "phases": phases},
    )
    return toy_world.config(work_dir, **{**own, **changes})

"""One run of the digits benchmark: a small network, trained by the parts of a real training, without a runner.

Legend: B batch.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.nn import functional as F

from perception.balancing import RotoGrad, SharedFeatures, TaskLosses, TaskStreams, build_balancer
from perception.balancing.build import Spec
from perception.engine.digits_data import CANVAS, DigitPairs, load_digit_pairs
from perception.engine.optim_wrapper import BalancedOptimWrapper
from perception.engine.task_forwards import Plan, predict_by_groups, prepare_model, train_by_groups
from perception.models.task_losses import group_losses

TASKS = ("left", "right", "recon")
METRICS = {"left": "accuracy_left", "right": "accuracy_right", "recon": "mse_recon"}
LOWER_IS_BETTER = ("mse_recon",)


@dataclass(frozen=True, kw_only=True)
class DigitsSettings:
    """What all runs of a benchmark share; the defaults run every method on 3 seeds in minutes of one core."""

    epochs: int = 8
    batch_size: int = 64
    lr: float = 2e-3
    width: int = 48
    num_train: int = 2048
    num_eval: int = 1024

    def describe(self) -> dict[str, Any]:
        """As JSON-able values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class DigitsResult:
    """A finished run.

    Attributes:
        metrics: on the test split, `accuracy_left`, `accuracy_right` (0 to 1) and `mse_recon` (squared grey values),
            as far as the run has the tasks.
        val_metrics: the same on the validation split.
        cpu_seconds: of this process, training only.
        seconds: wall clock, training only.
        conflict_share: mean share of task pairs with a negative cosine; None for a method without a Gram matrix.
        recon_layers: the layers that `recon_scores` found; of other methods none.
    """

    metrics: dict[str, float]
    val_metrics: dict[str, float]
    cpu_seconds: float
    seconds: float
    conflict_share: float | None
    recon_layers: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)


class DigitsNet(BaseModel):
    """A trunk of one narrow code, two classifiers and a decoder, which compete for the code.

    It offers to balancing what models of `perception.models` do. Its groups of tasks are the single tasks. The trunk
    has batch norms, which connection strength copies per task.

    Args:
        width: length of the code.
        tasks: those that it has heads for.
    """

    trunk_names = ("trunk",)
    stitch_stages = ("trunk.1", "trunk.2")

    def __init__(self, *, width: int, tasks: Sequence[str] = TASKS) -> None:
        super().__init__()
        self.task_names = tuple(tasks)
        self.kpi_metrics = {task: (METRICS[task],) for task in tasks}
        self.trunk = nn.Sequential(nn.Flatten(), _stage(CANVAS**2, 128), _stage(128, width))
        self.heads = nn.ModuleDict(
            {task: nn.Linear(width, CANVAS**2 if task == "recon" else 10) for task in tasks}
        )
        self.shared_features = SharedFeatures()
        self.task_streams = TaskStreams()
        self.shared_width = width
        self.rotations: RotoGrad | None = None
        self._only = self.task_names

    @contextmanager
    def only_tasks(self, tasks: Sequence[str]) -> Iterator[None]:
        """Forwards inside compute these tasks alone."""
        before, self._only = self._only, tuple(tasks)
        try:
            yield
        finally:
            self._only = before

    def forward(self, images: Tensor, left: Tensor, right: Tensor, mode: str = "tensor") -> Any:
        """Logits (B, 10) of the digits and the canvas (B, 144), of the chosen tasks.

        Args:
            images: (B, 1, 12, 12), 0 to 1.
            left: (B,) int64, the digit in the upper left.
            right: (B,) int64, the other.
            mode: "loss" for cross-entropies and a mean squared error, "predict" for the outputs as one data element
                of the whole batch, "tensor" for the outputs as a dict.
        """
        (code,) = self.shared_features(self.trunk(self.task_streams.repeat({"images": images})["images"]))
        codes = {task: self.task_streams.rows(code, task) for task in self._only}
        if self.rotations is not None:
            codes = {task: self.rotations.rotate(row, task) for task, row in codes.items()}
        outputs = {task: self.heads[task](row) for task, row in codes.items()}
        if mode == "predict":
            return [BaseDataElement(**outputs)]
        if mode != "loss":
            return outputs
        targets = {"left": left, "right": right, "recon": images.flatten(1)}
        losses: dict[str, Tensor] = {}
        for task, output in outputs.items():
            loss = F.mse_loss if task == "recon" else F.cross_entropy
            losses[f"{task}.loss_{'mse' if task == 'recon' else 'ce'}"] = loss(output, targets[task])
            losses[f"{task}.num_targets"] = torch.tensor(float(len(images)))
        return losses

    def parse_losses(self, losses: dict[str, Tensor]) -> tuple[TaskLosses, Any]:
        """See `group_losses`."""
        return group_losses(losses, self.task_names)


def _stage(num_inputs: int, num_outputs: int) -> nn.Sequential:
    # A bias would have no gradient but rounding errors, since the norm takes the mean away.
    return nn.Sequential(
        nn.Linear(num_inputs, num_outputs, bias=False), nn.BatchNorm1d(num_outputs), nn.ReLU()
    )


def make_wrapper(
    model: DigitsNet, balancer: Spec, settings: DigitsSettings, seed: int = 0
) -> tuple[Any, BalancedOptimWrapper]:
    """The model that a method trains and its optimiser wrapper, prepared: what can be known before a run is checked.

    Raises:
        ValueError: unknown method or argument, or one that does not fit the model.
    """
    method = build_balancer(balancer)
    prepared = prepare_model(method, model)
    optimizer = torch.optim.Adam(prepared.parameters(), lr=settings.lr, fused=True)
    wrapper = BalancedOptimWrapper(optimizer, balancer=method)
    steps = settings.epochs * (settings.num_train // settings.batch_size)
    wrapper.balanced.prepare(
        prepared, model.task_names, max_epochs=settings.epochs, total_steps=steps, seed=seed
    )
    return prepared, wrapper


def train_digits(
    balancer: Spec, *, seed: int, settings: DigitsSettings, tasks: Sequence[str] = TASKS
) -> DigitsResult:
    """Train and score one network; seeds change its initial weights, the order of batches and a method's own draws.

    Args:
        balancer: as `build_balancer` takes it.
        seed: of the run.
        settings: shared by all runs.
        tasks: which of the three tasks are trained.

    Raises:
        ValueError: as `make_wrapper`.
        FloatingPointError: too many non-finite steps in a row.
    """
    train, val, test = (
        load_digit_pairs("train", settings.num_train),
        load_digit_pairs("val", settings.num_eval),
        load_digit_pairs("test", settings.num_eval),
    )
    shuffle = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = DigitsNet(width=settings.width, tasks=tasks)
        model, wrapper = make_wrapper(net, balancer, settings, seed)
    plan = wrapper.balancer.plan
    conflicts: list[float] = []
    start, start_cpu = time.perf_counter(), time.process_time()
    step = 0
    for epoch in range(1, settings.epochs + 1):
        wrapper.balanced.begin_epoch(epoch)
        model.train()
        order = torch.randperm(len(train), generator=shuffle)
        for rows in order.split(settings.batch_size):
            if len(rows) < settings.batch_size:
                continue
            step += 1
            batch = _batch(train, rows)
            if plan:
                train_by_groups(model, batch, wrapper, step=step)
            else:
                model.train_step(batch, wrapper)
            share = wrapper.last_step.get("balance", {}).get("conflict_share")
            conflicts += [] if share is None else [share]
        wrapper.balanced.end_epoch()
        wrapper.balanced.update_kpis(score_digits(model, plan, val), step=wrapper.num_updates)
    return DigitsResult(
        metrics=score_digits(model, plan, test),
        val_metrics=score_digits(model, plan, val),
        cpu_seconds=round(time.process_time() - start_cpu, 3),
        seconds=round(time.perf_counter() - start, 3),
        conflict_share=fmean(conflicts) if conflicts else None,
        recon_layers=tuple(wrapper.last_step.get("balance", {}).get("recon_layers", ())),
        settings=settings.describe(),
    )


@torch.no_grad()
def score_digits(model: Any, plan: Plan, pairs: DigitPairs) -> dict[str, float]:
    """Accuracies and reconstruction error of the model's tasks.

    Args:
        model: a `DigitsNet`, as a method prepared it.
        plan: the method's groups of tasks.
        pairs: what it is tested on.
    """
    model.eval()
    (outputs,) = predict_by_groups(model, plan, model.val_step, _batch(pairs, slice(None)))
    return {
        METRICS[task]: float(F.mse_loss(outputs.recon, pairs.images.flatten(1)))
        if task == "recon"
        else float((outputs.get(task).argmax(dim=1) == getattr(pairs, task)).float().mean())
        for task in model.task_names
    }


def _batch(pairs: DigitPairs, rows: Tensor | slice) -> dict[str, Tensor]:
    return {"images": pairs.images[rows], "left": pairs.left[rows], "right": pairs.right[rows]}

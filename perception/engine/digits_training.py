"""One run of the digits benchmark: a small network, trained through `BalancedOptimWrapper` without a runner.

Legend: B batch.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perception.balancing import TaskLosses
from perception.balancing.build import Spec
from perception.engine.digits_data import CANVAS, DigitPairs, load_digit_pairs
from perception.engine.optim_wrapper import BalancedOptimWrapper

TASKS = ("left", "right", "recon")
METRICS = {"left": "accuracy_left", "right": "accuracy_right", "recon": "mse_recon"}
LOWER_IS_BETTER = ("mse_recon",)


@dataclass(frozen=True, kw_only=True)
class DigitsSettings:
    """What all runs of a benchmark share; the defaults run every method on 3 seeds in minutes of one core."""

    epochs: int = 12
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
    """

    metrics: dict[str, float]
    val_metrics: dict[str, float]
    cpu_seconds: float
    seconds: float
    conflict_share: float | None
    settings: dict[str, Any] = field(default_factory=dict)


class DigitsNet(nn.Module):
    """A trunk of one narrow code, two classifiers and a decoder, which compete for the code.

    Args:
        width: length of the code.
    """

    task_names = TASKS
    kpi_metrics = {task: (name,) for task, name in METRICS.items()}

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Flatten(), nn.Linear(CANVAS**2, 128), nn.ReLU(), nn.Linear(128, width), nn.ReLU()
        )
        self.heads = nn.ModuleDict(
            {
                "left": nn.Linear(width, 10),
                "right": nn.Linear(width, 10),
                "recon": nn.Linear(width, CANVAS**2),
            }
        )

    def forward(self, images: Tensor, tasks: Sequence[str] = TASKS) -> dict[str, Tensor]:
        """Logits (B, 10) of the two digits and the canvas (B, 144), of the asked tasks."""
        code = self.trunk(images)
        return {task: self.heads[task](code) for task in tasks}

    def losses(self, pairs: DigitPairs, tasks: Sequence[str] = TASKS) -> TaskLosses:
        """Cross-entropy of the digits, mean squared error of the canvas."""
        outputs = self(pairs.images, tasks)
        losses = {
            task: F.mse_loss(output, pairs.images.flatten(1))
            if task == "recon"
            else F.cross_entropy(output, getattr(pairs, task))
            for task, output in outputs.items()
        }
        counts = {task: torch.tensor(float(len(pairs))) for task in losses}
        return TaskLosses(losses, counts, tuple(tasks))

    @torch.no_grad()
    def score(self, pairs: DigitPairs, tasks: Sequence[str] = TASKS) -> dict[str, float]:
        """Accuracies and reconstruction error."""
        outputs = self(pairs.images, tasks)
        return {
            METRICS[task]: float(F.mse_loss(output, pairs.images.flatten(1)))
            if task == "recon"
            else float((output.argmax(dim=1) == getattr(pairs, task)).float().mean())
            for task, output in outputs.items()
        }


def make_wrapper(
    model: DigitsNet, balancer: Spec, settings: DigitsSettings, tasks: Sequence[str] = TASKS, seed: int = 0
) -> BalancedOptimWrapper:
    """The optimiser wrapper, prepared: everything that can be known about a method before a run is checked here.

    Raises:
        ValueError: unknown method or argument, or one that does not fit the tasks.
    """
    wrapper = BalancedOptimWrapper(torch.optim.Adam(model.parameters(), lr=settings.lr), balancer=balancer)
    steps = settings.epochs * (settings.num_train // settings.batch_size)
    wrapper.balanced.prepare(model, tasks, max_epochs=settings.epochs, total_steps=steps, seed=seed)
    return wrapper


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
        model = DigitsNet(width=settings.width)
    wrapper = make_wrapper(model, balancer, settings, tasks, seed)
    conflicts: list[float] = []
    start, start_cpu = time.perf_counter(), time.process_time()
    for epoch in range(1, settings.epochs + 1):
        wrapper.balanced.begin_epoch(epoch)
        order = torch.randperm(len(train), generator=shuffle)
        for rows in order.split(settings.batch_size):
            if len(rows) < settings.batch_size:
                continue
            with wrapper.optim_context(model):
                losses = model.losses(_take(train, rows), tasks)
            wrapper.update_params(losses)
            share = wrapper.last_step.get("balance", {}).get("conflict_share")
            conflicts += [] if share is None else [share]
        wrapper.balanced.end_epoch()
        wrapper.balanced.update_kpis(model.score(val, tasks), step=wrapper.num_updates)
    return DigitsResult(
        metrics=model.score(test, tasks),
        val_metrics=model.score(val, tasks),
        cpu_seconds=round(time.process_time() - start_cpu, 3),
        seconds=round(time.perf_counter() - start, 3),
        conflict_share=fmean(conflicts) if conflicts else None,
        settings=settings.describe(),
    )


def _take(pairs: DigitPairs, rows: Tensor) -> DigitPairs:
    return DigitPairs(images=pairs.images[rows], left=pairs.left[rows], right=pairs.right[rows])

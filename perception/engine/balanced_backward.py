"""Which gradient source a window uses, when a balancer is told what, and what of it a checkpoint keeps."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from perception.balancing import Balancer
from perception.balancing.gradient_sketch import GradientSketch
from perception.balancing.shared_features import SharedFeatures
from perception.balancing.step_report import describe_gram
from perception.balancing.task_gradients import TaskGradients
from perception.engine.collectives import any_over_ranks, sum_over_ranks, world_size
from perception.engine.gradient_sources import (
    FeatureSource,
    LastLayerSource,
    MicroStep,
    NonFinite,
    ParameterSource,
    ReusedSource,
    SummedSource,
    add_gradient,
)
from perception.engine.group_source import GroupSource
from perception.engine.loss_check import LossCheck
from perception.engine.rotation_source import RotationSource
from perception.engine.row_exchange import keep_parts, row_exchange
from perception.engine.shard_sources import GradientStream, ShardSource, SummedShardSource
from perception.engine.sharded_weights import ShardedWeights
from perception.evaluation import LOWER_IS_BETTER
from perception.utils import did_you_mean

if TYPE_CHECKING:
    from perception.balancing.connection_strength import ConnectionStrength
    from perception.balancing.rotograd_balancer import RotoGradBalancer

GradientSource = Literal["parameters", "features", "last_layer"]
KPIS = "kpi_metrics"
"""Attribute of a model: task → names of the metrics whose mean is its score."""

_Source = SummedSource | ParameterSource | FeatureSource | ReusedSource | GroupSource | RotationSource


class BalancedBackward:
    """From the task losses of an accumulation window to the gradients of its update.

    Args:
        balancer: the method.
        gradient_source: where it gets task gradients from; see `BalancedOptimWrapper`.
        interval: updates between refreshed coefficients.
        gram_interval: updates between measurements of cosines where the method has no Gram matrix; 0: never.
        bucket_mb: largest message between ranks, MiB.
        accumulative_counts: micro-batches per update.
        sketch_size: numbers per task from which the Gram matrix is estimated; 0: it is exact.

    Raises:
        ValueError: an argument is outside its choices, or does not go with the balancer.
    """

    def __init__(
        self,
        *,
        balancer: Balancer,
        gradient_source: GradientSource,
        interval: int,
        gram_interval: int,
        bucket_mb: float,
        accumulative_counts: int = 1,
        sketch_size: int = 0,
    ) -> None:
        check_options(balancer, gradient_source, interval, gram_interval, accumulative_counts, sketch_size)
        self.balancer = balancer
        self.gradient_source = gradient_source
        self.interval = interval
        self.gram_interval = gram_interval
        self.bucket_mb = bucket_mb
        self.sketch_size = sketch_size
        self.num_updates = 0
        self.task_names: tuple[str, ...] = ()
        self.weights: ShardedWeights | None = None
        self._model: nn.Module | None = None
        self._stream: GradientStream | None = None
        self._features: SharedFeatures | None = None
        self._last_layer: list[Tensor] = []
        self._kpi_metrics: Mapping[str, Sequence[str]] = {}
        self._is_prepared = False
        self._seed = 0
        self._loss_check = LossCheck()
        self._main: _Source | None = None
        self._reused: ReusedSource | None = None
        self._current: _Source | None = None
        self._coefficients: list[float] | None = None
        self._watched: dict[str, Any] = {}
        self._reported: dict[str, Any] = {}
        self._epoch = 0
        self._sums: dict[str, list[float]] = {}  # task → [sum of global losses, how many]
        self._kpi_step = -1

    @property
    def needs_task_gradients(self) -> bool:
        """Whether task gradients are held apart."""
        balancer = self.balancer
        is_apart = balancer.needs_gradients or balancer.observes_gradients or balancer.holds_gradients
        return balancer.needs_gram or is_apart

    def prepare(
        self, model: nn.Module, task_names: Sequence[str], *, max_epochs: int, total_steps: int, seed: int
    ) -> None:
        """Learn the run before its first step, and before a state is loaded; check all that can be known.

        Args:
            model: the bare model.
            task_names: its tasks.
            max_epochs: epochs of the run.
            total_steps: updates of the run.
            seed: the run's, the same on all ranks.

        Raises:
            ValueError: the balancer names unknown tasks, or the model lacks what the gradient source needs.
        """
        self.task_names = tuple(task_names)
        self._model = model
        self._seed = seed
        self.balancer.adopt(model)
        self.balancer.setup(self.task_names, max_epochs=max_epochs, total_steps=total_steps, seed=seed)
        self._kpi_metrics = getattr(model, KPIS, {})
        self.balancer.check_directions(lower_is_better_tasks(self._kpi_metrics))
        self._features = getattr(model, "shared_features", None)
        last_layer = getattr(model, "last_shared_parameters", None)
        if last_layer is not None and self.gradient_source == "last_layer":
            self._last_layer = list(last_layer())
        if self.needs_task_gradients:
            missing = {"features": self._features is None, "last_layer": not self._last_layer}
            if missing.get(self.gradient_source):
                wanted = {"features": "shared_features", "last_layer": "last_shared_parameters"}
                raise ValueError(
                    f"gradient_source={self.gradient_source!r} needs a model with {wanted[self.gradient_source]}, "
                    f"which {type(model).__name__} has not. Use gradient_source='parameters'"
                )
        self._is_prepared = True

    def forward_context(self) -> AbstractContextManager:
        """What a forward of this window runs under."""
        if self.balancer.rotates_features and self._features is not None:
            return self._features.cut()
        if self.needs_task_gradients and self.gradient_source == "features" and not self._is_reusing():
            assert self._features is not None
            return self._features.cut()
        return nullcontext()

    def micro_step(self, step: MicroStep, parameters: Sequence[Tensor]) -> NonFinite | None:
        """Backward of one micro-batch; parameters: the trainable ones.

        Returns:
            What of the task gradients is not finite, if that is known already; the window must then be dropped.

        Raises:
            ValueError: a task that is new in it trains nothing, or has another one's loss.
        """
        self._loss_check.check(step, parameters, self._cut_features())
        if self._current is None:
            self._current = self._choose(parameters, len(step.losses.task_names))
            if self.gram_interval and self.num_updates % self.gram_interval == 0:
                self._watched = self._watch(step, parameters)
        result = self._current.micro_step(step)
        for task, loss, is_present in zip(
            step.losses.task_names, step.global_losses.tolist(), step.present.tolist(), strict=True
        ):
            if is_present:
                total = self._sums.setdefault(task, [0.0, 0])
                total[0] += loss
                total[1] += 1
        return result

    def finish(self, loss_scale: float = 1.0) -> NonFinite | None:
        """End the window: the update's gradients in `p.grad`, or what of the task gradients is not finite.

        Args:
            loss_scale: that of the window's micro-batches, taken out again.
        """
        if self._current is None:
            return None
        source, self._current = self._current, None
        result = source.finish(loss_scale)
        self._reported = self._describe_reuse() if source is self._reused else {}
        if result is None and source is self._main and not isinstance(source, SummedSource):
            self._coefficients = None if source.coefficients is None else source.coefficients.tolist()
        return result

    def holders(self, parameters: Sequence[Tensor]) -> Sequence[Tensor]:
        """Whose `grad` is the update: the parameters, or this rank's parts of them where only parts are known."""
        shards = None if self.weights is None else self.weights.parts(parameters)
        return shards if shards and any(shard.grad is not None for shard in shards) else parameters

    def drop(self) -> None:
        """Forget the window."""
        self._current = self._main = None
        self._watched = {}
        if self._features is not None:
            self._features.clear()

    def end_step(self) -> None:
        """Count an update that was taken."""
        self.num_updates += 1
        self.balancer.end_step()

    def begin_epoch(self, epoch: int) -> None:
        """Start an epoch, counted from 1; after a resume inside it, go on with it."""
        if epoch != self._epoch:
            self._epoch = epoch
            if self.balancer.needs_task_forwards:
                self._main = None  # its phase may be another one
            self.balancer.begin_epoch(epoch)

    def end_epoch(self) -> None:
        """Tell the balancer the epoch's mean global losses."""
        means = {task: total / count for task, (total, count) in self._sums.items() if count}
        self._sums = {}
        self.balancer.end_epoch(means)

    def update_kpis(self, metrics: Mapping[str, Any], *, step: int) -> None:
        """Tell the balancer the tasks' scores of an evaluation, once per step."""
        if step <= self._kpi_step:
            return
        kpis = {}
        for task, names in self._kpi_metrics.items():
            values = [metrics[name] for name in names if isinstance(metrics.get(name), int | float)]
            if task in self.task_names and len(values) == len(names):
                kpis[task] = sum(float(value) for value in values) / len(values)
        if kpis:
            self._kpi_step = step
            self.balancer.update_kpis(kpis)

    def report(self) -> dict[str, Any]:
        """What the last window did, JSON-able."""
        watched, self._watched = self._watched, {}
        return {**self.balancer.report(), **self._reported, **watched}

    def state_dict(self) -> dict[str, Any]:
        """Tensors and JSON-able values that a resume needs."""
        return {
            "num_updates": self.num_updates,
            # An absent task's is NaN, which a checkpoint refuses to hold.
            "coefficients": self._coefficients
            and [None if math.isnan(value) else value for value in self._coefficients],
            "epoch": self._epoch,
            "sums": {task: list(total) for task, total in self._sums.items()},
            "kpi_step": self._kpi_step,
            "balancer": self.balancer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned; after `prepare`."""
        self.num_updates = int(state["num_updates"])
        saved = state["coefficients"]
        self._coefficients = saved and [math.nan if value is None else value for value in saved]
        self._epoch = int(state["epoch"])
        self._sums = {task: list(total) for task, total in state["sums"].items()}
        self._kpi_step = int(state["kpi_step"])
        self.balancer.load_state_dict(state["balancer"])

    def _cut_features(self) -> list[Tensor]:
        """Where the last forward's graph is cut in front of something to train."""
        if self._features is None:
            return []
        pairs = zip(self._features.leaves, self._features.roots, strict=True)
        return [leaf for leaf, root in pairs if root.requires_grad]

    def _is_reusing(self) -> bool:
        return self._coefficients is not None and self.num_updates % self.interval != 0

    def _choose(self, parameters: Sequence[Tensor], num_tasks: int) -> _Source:
        needs_model = self.balancer.needs_task_forwards or self.balancer.rotates_features
        if (self.needs_task_gradients or needs_model) and not self._is_prepared:
            raise ValueError(
                f"{self.balancer} compares task gradients and must know the run: call prepare(model, ...) before the "
                "first step. The runner does so"
            )
        if self.needs_task_gradients and self._is_reusing():
            if self._reused is None or not _same(self._reused.parameters, parameters):
                self._reused = ReusedSource(self.balancer, parameters, bucket_mb=self.bucket_mb)
            self._reused.coefficients = torch.tensor(self._coefficients, dtype=torch.float64)
            return self._reused
        if self._main is None or not _same(self._main.parameters, parameters):
            self._main = self._build(parameters, num_tasks)
        return self._main

    def _describe_reuse(self) -> dict[str, Any]:
        assert self._reused is not None
        assert self._reused.totals is not None
        pairs = zip(self.task_names, self._reused.totals.tolist(), strict=True)
        return {
            "reused": True,
            "coefficients": {task: value for task, value in pairs if not math.isnan(value)},
        }

    def _build(self, parameters: Sequence[Tensor], num_tasks: int) -> _Source:
        if self.balancer.projects_groups:
            assert self._model is not None
            connected = cast("ConnectionStrength", self.balancer)
            return GroupSource(connected, parameters, self._model, bucket_mb=self.bucket_mb)
        if self.balancer.rotates_features:
            assert self._features is not None
            rotating = cast("RotoGradBalancer", self.balancer)
            return RotationSource(rotating, parameters, self._features, bucket_mb=self.bucket_mb)
        if (stream := self._stream_of(parameters)) is not None:
            if self.needs_task_gradients:
                return ShardSource(self.balancer, stream, num_tasks)
            return SummedShardSource(self.balancer, stream)
        if not self.needs_task_gradients:
            return SummedSource(self.balancer, parameters, bucket_mb=self.bucket_mb)
        if self.gradient_source == "features":
            assert self._features is not None
            return FeatureSource(self.balancer, parameters, self._features, bucket_mb=self.bucket_mb)
        if self.gradient_source == "last_layer":
            return LastLayerSource(self.balancer, parameters, self._last_layer, bucket_mb=self.bucket_mb)
        sketch = GradientSketch(size=self.sketch_size, seed=self._seed) if self.sketch_size else None
        return ParameterSource(self.balancer, parameters, num_tasks, bucket_mb=self.bucket_mb, sketch=sketch)

    def _stream_of(self, parameters: Sequence[Tensor]) -> GradientStream | None:
        """What deals out gradients of sharded weights; None for what needs whole gradients."""
        reads = self.balancer.needs_gradients or self.balancer.observes_gradients
        if self.weights is None or reads or self.gradient_source != "parameters" or self.sketch_size:
            return None
        shards = self.weights.parts(parameters)
        if shards is not None and (self._stream is None or not _same(self._stream.parameters, parameters)):
            self._stream = GradientStream(parameters, shards, bucket_mb=self.bucket_mb)
        return None if shards is None else self._stream

    def _watch(self, step: MicroStep, parameters: Sequence[Tensor]) -> dict[str, Any]:
        if self.balancer.needs_gram:
            return {}
        gradients = TaskGradients(parameters, len(step.present))
        for task in step.losses:
            add_gradient(gradients, step, task, retain_graph=True)
        gradients.reached = any_over_ranks(gradients.reached)
        if world_size() > 1:
            exchange = row_exchange(gradients, bucket_mb=self.bucket_mb)
            tasks = step.present.nonzero().flatten().tolist()
            keep_parts(gradients, exchange, {task: exchange.start(gradients.row(task)) for task in tasks})
        # Of this micro-batch, not of its part in the window's mean.
        gram = sum_over_ranks(gradients.gram(step.present)) / (step.factor * step.loss_scale) ** 2
        if not bool(gram.isfinite().all()):
            return {}  # an overflow: the update will be dropped and nothing reported
        return describe_gram(step.losses.task_names, gram, step.present, torch.ones(len(gram)))


def lower_is_better_tasks(kpi_metrics: Mapping[str, Sequence[str]]) -> list[str]:
    """The tasks whose score is a mean of errors.

    Example:
        >>> lower_is_better_tasks({"cls": ("mAP",), "velocity": ("mAVE",)})
        ['velocity']
    """
    return [task for task, names in kpi_metrics.items() if names and set(names) <= set(LOWER_IS_BETTER)]


def _same(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return len(first) == len(second) and all(a is b for a, b in zip(first, second, strict=True))


def check_options(
    balancer: Balancer,
    gradient_source: str,
    interval: int = 1,
    gram_interval: int = 0,
    accumulative_counts: int = 1,
    sketch_size: int = 0,
) -> None:
    """Refuse options that are outside their choices, or do not go with the balancer.

    Raises:
        ValueError: names the option and what is allowed.
    """
    choices = get_args(GradientSource)
    if gradient_source not in choices:
        raise ValueError(
            f"gradient_source is {gradient_source!r}.{did_you_mean(gradient_source, choices)} "
            f"Allowed: {', '.join(choices)}"
        )
    if interval < 1 or gram_interval < 0:
        raise ValueError(
            f"interval is {interval} and watch.gram_interval {gram_interval}; allowed: an interval of 1 or more, a "
            "gram_interval of 0 (never) or more"
        )
    if balancer.needs_task_forwards and (gram_interval or accumulative_counts != 1):
        raise ValueError(
            f"{balancer} runs the model once per group of tasks, so it takes no watch.gram_interval (no forward has "
            "all losses) and no accumulative_counts above 1 (a group's update precedes the next one's forward); got "
            f"{gram_interval} and {accumulative_counts}. For larger batches raise batch_size or use more ranks"
        )
    if balancer.rotates_features and (gradient_source != "parameters" or interval != 1 or gram_interval):
        raise ValueError(
            f"{balancer} always takes its gradients at the model's shared features, in every update, and reports their "
            f"cosines; gradient_source={gradient_source!r}, interval={interval} and watch.gram_interval="
            f"{gram_interval} do not go with it, leave them out"
        )
    compares = balancer.needs_gram or balancer.needs_gradients
    if not compares and (gradient_source != "parameters" or interval != 1):
        raise ValueError(
            f"{balancer} does not compare task gradients, so gradient_source={gradient_source!r} and "
            f"interval={interval} would do nothing; leave them out"
        )
    if not balancer.has_shared_features and gradient_source != "parameters":
        raise ValueError(
            f"{balancer} gives each group of tasks features and last layers of its own, so gradients there compare "
            f"nothing; it needs gradient_source='parameters', got {gradient_source!r}"
        )
    if sketch_size < 0:
        raise ValueError(f"sketch_size is {sketch_size}; allowed: 0 (exact), or numbers per task, as 65536")
    if sketch_size and (not balancer.needs_gram or gradient_source != "parameters"):
        raise ValueError(
            f"sketch_size={sketch_size} estimates the Gram matrix of all parameters' gradients, which {balancer} with "
            f"gradient_source={gradient_source!r} does not use; leave it out"
        )
    is_exact = balancer.needs_gradients or balancer.observes_gradients or balancer.holds_gradients
    if is_exact and (gradient_source != "parameters" or interval != 1 or sketch_size):
        raise ValueError(
            f"{balancer} works on the gradients, element by element or layer by layer: it needs "
            f"gradient_source='parameters', interval=1 and sketch_size=0, got {gradient_source!r}, {interval} and "
            f"{sketch_size}"
        )

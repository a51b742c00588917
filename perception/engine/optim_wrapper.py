"""From task losses to one update: the seam at which balancing methods enter MMEngine's training.

`parse_losses` hands a `TaskLosses` to `update_params`. Per step, on every rank alike:

1. one small all-reduce of target counts and losses: global task losses, global normalisation, finite check;
2. a gradient source asks `Balancer.weigh` and `.combine` for one coefficient per task and leaves the global batch's
   update in `p.grad`: by one backward on one scalar, or by one per task (see `gradient_sources`; DDP's reducer is off);
3. finite check, clip, step, zero_grad.

In fp16 every backward runs on losses multiplied by the loss scale, and what is compared, combined, checked and clipped
are the unscaled gradients.

Nothing changes a parameter or a moment before both checks have passed, and both decide from all-reduced numbers, so
that all ranks decide alike.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from perception.balancing import Balancer, TaskLosses, build_balancer
from perception.balancing.build import Spec
from perception.engine.balanced_backward import BalancedBackward, GradientSource
from perception.engine.collectives import any_over_ranks, gather_json, join_norms, sum_over_ranks
from perception.engine.gradient_sources import MicroStep
from perception.engine.loss_scaler import LossScaler
from perception.engine.precision import Precision, autocast, resolve_precision
from perception.engine.step_context import StepContext
from perception.engine.zero_optimizer import ZeroOptimizer
from perception.registry import OPTIM_WRAPPERS
from perception.utils import get_logger

logger = get_logger("engine")

_MAX_NAMED = 5


@OPTIM_WRAPPERS.register_module()
class BalancedOptimWrapper(OptimWrapper):
    """Optimiser wrapper that receives the task losses.

    *Deviation* from `OptimWrapper`: gradients are summed over ranks here, each task normalised by its number of targets
    in the global batch (by 1 if that is 0), so that N ranks take the same step as one rank on the joined batch; a task
    absent on one rank contributes zeros there. With accumulation the normalisation is that of each micro-batch.

    Args:
        optimizer: the optimiser.
        accumulative_counts: micro-batches per update.
        clip_grad: `dict(max_norm=35.0)`, optionally `norm_type`; None does not clip.
        balancer: the balancing method, its name or a dict as `build_balancer` takes them; by default the plain sum.
        gradient_source: where a method that compares task gradients gets them: "parameters" (exact, all parameters that
            tasks share), "features" (the model's `shared_features`) or "last_layer" (its `last_shared_parameters`).
        interval: coefficients are computed every so many updates and used again in between.
        watch: `dict(gram_interval=100)` measures the cosines of methods that do not need them, at the cost of a
            backward per task, every so many updates; 0, or None, is never.
        precision: "bf16" and "fp16" run the forward under autocast, also on CPU, "fp16" with a dynamic loss scale;
            "auto" takes the one that CUDA has in hardware (see `resolve_precision`), else "fp32".
        loss_scale: arguments of `LossScaler`, for fp16: `dict(init_scale=1024.0)`; by default `GradScaler`'s.
        max_bad_steps: after this many non-finite steps in a row the run ends. An overflow that lowers the loss scale
            is none of them: its update is skipped, and the scale adapts.
        bucket_mb: largest gradient message in MiB.
        sketch_size: 0 is the exact Gram matrix of the global batch; another number estimates it from as many numbers
            per task (65536 moves a cosine by 0.004), so that ranks exchange hardly more than in plain training.

    Raises:
        ValueError: an argument is outside its choices.
        TypeError: `balancer` is something else.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        accumulative_counts: int = 1,
        clip_grad: dict[str, Any] | None = None,
        balancer: Balancer | Spec | None = None,
        gradient_source: GradientSource = "parameters",
        interval: int = 1,
        watch: dict[str, int] | None = None,
        precision: Precision = "fp32",
        loss_scale: dict[str, Any] | None = None,
        max_bad_steps: int = 10,
        bucket_mb: float = 25.0,
        sketch_size: int = 0,
    ) -> None:
        clip_grad = None if clip_grad is None else dict(clip_grad)
        if clip_grad is not None and not {"max_norm"} <= set(clip_grad) <= {"max_norm", "norm_type"}:
            raise ValueError(
                f"clip_grad is {clip_grad}; allowed: dict(max_norm=35.0) with an optional norm_type"
            )
        super().__init__(optimizer, accumulative_counts=accumulative_counts, clip_grad=clip_grad)
        if watch is not None and set(watch) != {"gram_interval"}:
            raise ValueError(f"watch is {watch}; allowed: dict(gram_interval=100), or None")
        self.balanced = BalancedBackward(
            balancer=_as_balancer(balancer),
            gradient_source=gradient_source,
            interval=interval,
            gram_interval=0 if watch is None else watch["gram_interval"],
            bucket_mb=bucket_mb,
            accumulative_counts=accumulative_counts,
            sketch_size=sketch_size,
        )
        self.max_bad_steps = max_bad_steps
        self.precision = resolve_precision(precision)
        self.scaler = _as_scaler(loss_scale, precision, self.precision)
        self.last_checkpoint: Path | None = None
        self.num_bad_in_row = 0
        self.num_skipped = 0
        self.last_step: dict[str, Any] = {}
        self._context: StepContext | None = None
        self._is_window_bad = False
        self._parameter_names: dict[int, str] = {}

    @property
    def balancer(self) -> Balancer:
        """The balancing method."""
        return self.balanced.balancer

    def shard(self, optimizer: ZeroOptimizer) -> None:
        """From now on update by a sharded optimiser, made of the one before."""
        self.optimizer = optimizer
        self.balanced.weights = optimizer.weights

    @property
    def num_updates(self) -> int:
        """Optimiser steps that were taken."""
        return self.balanced.num_updates

    @property
    def is_between_updates(self) -> bool:
        """Whether no gradient is held: True between updates, False in mid-accumulation."""
        return self.should_update()

    @property
    def loss_scale(self) -> float:
        """What losses are multiplied by before a backward; 1 without loss scaling."""
        return 1.0 if self.scaler is None else self.scaler.scale

    def begin_step(self, context: StepContext) -> None:
        """Tell the wrapper of the step that is about to run, so that it can explain a failure and undo it."""
        self._context = context
        if not self._parameter_names:
            self._parameter_names = {id(p): name for name, p in context.model.named_parameters()}

    def autocast(self) -> AbstractContextManager:
        """The context under which forwards run."""
        return autocast(self.precision)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast, and DDP's own reduction switched off always."""
        no_sync = model.no_sync() if hasattr(model, "no_sync") else nullcontext()
        with no_sync, self.autocast(), self.balanced.forward_context():
            yield

    def update_params(
        self,
        loss: TaskLosses,
        step_kwargs: dict[str, Any] | None = None,
        zero_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """One micro-step: backward, and at the end of an accumulation window the update.

        Args:
            loss: the local task losses from `model.parse_losses`.
            step_kwargs: unused by us; MMEngine's interface.
            zero_kwargs: as `step_kwargs`.

        Raises:
            TypeError: the model's `parse_losses` does not return `TaskLosses`.
            FloatingPointError: `max_bad_steps` steps in a row were not finite.
        """
        following = self._inner_count + 1
        ends_window = following % self._accumulative_counts == 0 or following == self._max_counts
        self.add_losses(loss, ends_window=ends_window)
        self._inner_count += 1
        if self.should_update() and self.take_step():
            self.end_update()

    def add_losses(self, loss: TaskLosses, *, ends_window: bool = False) -> None:
        """The first part of `update_params`: exchange of losses, finite check, backward.

        Args:
            loss: as there.
            ends_window: whether `take_step` follows, so that gradients may be sent while others are computed.
        """
        if not isinstance(loss, TaskLosses):
            raise TypeError(
                f"update_params received {type(loss).__name__}; the model's parse_losses must return a TaskLosses "
                "first. Use a model of perception.models, or return TaskLosses(losses, num_targets, task_names)"
            )
        global_losses, shares, present, bad_tasks = self._exchange(loss)
        self.last_step = {
            "tasks": {
                task: value
                for task, value, is_present in zip(
                    loss.task_names, global_losses.tolist(), present.tolist(), strict=True
                )
                if is_present
            },
            "grad_norm": None,
            "skipped": False,
        }
        if self.scaler is not None:
            self.last_step["loss_scale"] = self.scaler.scale
        if bad_tasks:
            self._drop_window("loss", tasks=bad_tasks, parameters=[])
        if not self._is_window_bad:
            step = MicroStep(
                losses=loss,
                global_losses=global_losses,
                shares=shares,
                present=present,
                factor=float(self.scale_loss(torch.ones((), dtype=torch.float64))),
                loss_scale=self.loss_scale,
                ends_window=ends_window,
            )
            non_finite = self.balanced.micro_step(step, self._parameters())
            if non_finite is not None:
                self._drop_update(partial(self._name_bad, *non_finite))

    def take_step(self) -> bool:
        """The second part: gradients of the global batch, finite check, clip, optimiser step; whether it was taken."""
        is_taken = not self._is_window_bad and self._update()
        self.zero_grad()
        self._is_window_bad = False
        return is_taken

    def end_update(self) -> None:
        """Count an update that was taken, and end a row of bad ones."""
        self.balanced.end_step()
        self.num_bad_in_row = 0

    def _exchange(self, losses: TaskLosses) -> tuple[Tensor, Tensor, Tensor, list[str]]:
        # Each part of the local losses is S / n, or S where n = 0. Summed over ranks: n, S, how many have it, and how
        # many a bad one.
        local = torch.zeros(4, len(losses.part_names), dtype=torch.float64)
        divisors = torch.zeros(len(losses.part_names), dtype=torch.float64)
        if losses.parts:
            pairs = [(loss, losses.num_targets[part]) for part, loss in losses.parts.items()]
            # One copy from the device instead of one per number.
            flat = torch.stack(
                [value.detach().double().reshape(()) for pair in pairs for value in pair]
            ).cpu()
            values, counts = flat.view(-1, 2).T
            columns = [losses.part_names.index(part) for part in losses.parts]
            is_finite = values.isfinite()
            divisors[columns] = _or_one(counts)
            sums = torch.where(is_finite, values, 0.0) * divisors[columns]
            local[:, columns] = torch.stack([counts, sums, torch.ones_like(counts), (~is_finite).double()])
        counts, sums, num_ranks, bad = sum_over_ranks(local, what="losses and target counts")
        global_divisors = _or_one(counts)
        owners = torch.tensor([losses.task_names.index(task) for task in losses.part_tasks])
        zeros = torch.zeros(len(losses.task_names), dtype=torch.float64)
        global_losses = zeros.index_add(0, owners, sums / global_divisors)
        present = zeros.index_add(0, owners, num_ranks) > 0
        is_bad = zeros.index_add(0, owners, bad) > 0
        bad_tasks = [task for task, flag in zip(losses.task_names, is_bad.tolist(), strict=True) if flag]
        return global_losses, divisors / global_divisors, present, bad_tasks

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad]

    def _update(self) -> bool:
        parameters = self._parameters()
        non_finite = self.balanced.finish(self.loss_scale)
        if non_finite is not None:
            self._drop_update(partial(self._name_bad, *non_finite))
            return False
        holders = self.balanced.holders(parameters)
        gradients = [holder.grad for holder in holders if holder.grad is not None]
        if not gradients:
            self.last_step |= {"grad_norm": 0.0, "balance": self.balanced.report()}
            return False
        clip = self.clip_grad_kwargs or {}
        norm_type = float(clip.get("norm_type", 2.0))
        norm = get_total_norm(gradients, norm_type=norm_type)
        if holders is not parameters:  # parts of the whole
            norm = join_norms(norm, norm_type)
        if not bool(torch.isfinite(norm)):
            self._drop_update(partial(self._blame, parameters))
            return False
        self.last_step |= {"grad_norm": float(norm), "balance": self.balanced.report()}
        if clip:
            clip_grads_with_norm_(holders, clip["max_norm"], norm)
        self.optimizer.step()
        if self.scaler is not None:
            self.scaler.update(has_overflowed=False)
        return True

    def _name_bad(self, tasks: list[int], parameters: list[int]) -> tuple[list[str], list[str]]:
        names = list(self._named(self._parameters()))
        return [self.balanced.task_names[index] for index in tasks], [names[number] for number in parameters]

    def _blame(self, parameters: list[Tensor]) -> tuple[list[str], list[str]]:
        grads = [holder.grad for holder in self.balanced.holders(parameters)]
        is_bad = [grad is not None and not bool(torch.isfinite(grad).all()) for grad in grads]
        is_bad = any_over_ranks(torch.tensor(is_bad)).tolist()
        bad = {
            name: p for (name, p), flag in zip(self._named(parameters).items(), is_bad, strict=True) if flag
        }
        tasks: set[str] = set()
        if self._context is not None:
            try:
                local = self._context.blame_gradients(bad or self._named(parameters), self.autocast())
            except (RuntimeError, ValueError) as error:
                logger.warning("the failing step could not be run again to find its task: %s", error)
                local = {}
            for blamed in gather_json(local):
                tasks.update(blamed)
        return sorted(tasks), list(bad)

    def _named(self, parameters: list[Tensor]) -> dict[str, Tensor]:
        return {self._parameter_names.get(id(p), f"parameter {i}"): p for i, p in enumerate(parameters)}

    def _drop_update(self, find_guilty: Callable[[], tuple[list[str], list[str]]]) -> None:
        """Gradients are not finite: the loss scale was too large, or the step is a bad one."""
        if self.scaler is None or self.scaler.is_at_floor:
            if self.scaler is not None:
                self.scaler.update(has_overflowed=True)
            self._drop_window("gradient", *find_guilty())
            return
        before = self.scaler.scale
        self.scaler.update(has_overflowed=True)
        self._undo_window()
        self.last_step["overflow"] = {"loss_scale": before, "next_loss_scale": self.scaler.scale}
        logger.info(
            "step %s: gradients overflowed at a loss scale of %g; the update is skipped, the scale is now %g",
            None if self._context is None else self._context.step,
            before,
            self.scaler.scale,
        )

    def _undo_window(self) -> None:
        """Leave out this update, and undo the forward's traces."""
        self._is_window_bad = True
        self.balanced.drop()
        self.num_skipped += 1
        self.last_step["skipped"] = True
        if self._context is not None:
            self._context.restore_statistics()

    def _drop_window(self, kind: str, tasks: list[str], parameters: list[str]) -> None:
        """Leave out this update as a bad one: record and report it, end the run after too many."""
        self._undo_window()
        self.num_bad_in_row += 1
        tokens: list[str] = []
        step = None
        if self._context is not None:
            step = self._context.step
            tokens = [token for part in gather_json(self._context.sample_tokens()) for token in part]
        self.last_step["non_finite"] = {
            "kind": kind,
            "tasks": tasks,
            "parameters": parameters,
            "sample_tokens": tokens,
            "in_row": self.num_bad_in_row,
        }
        message = (
            f"step {step}: non-finite {kind} in task {', '.join(tasks) or 'unknown'}"
            + (f", parameters {_name_some(parameters)}" if parameters else "")
            + (
                ""
                if self.scaler is None or kind == "loss"
                else f", at the lowest loss scale {self.loss_scale:g}"
            )
            + f"; samples {', '.join(tokens) or 'unknown'}; the step is skipped "
            + f"({self.num_bad_in_row} in a row, the run ends at {self.max_bad_steps})"
        )
        logger.warning("%s", message)
        if self.num_bad_in_row >= self.max_bad_steps:
            self.zero_grad()
            last = self.last_checkpoint or "none was saved"
            raise FloatingPointError(
                f"{message}. Last good checkpoint: {last}. Look at the named samples, lower the learning rate or "
                "clip harder, then continue with --resume"
            )

    def resume_at(self, step: int, *, max_steps: int) -> None:
        """Continue counting accumulation windows after `step` finished steps of `max_steps`."""
        self._inner_count = step
        if self._accumulative_counts > 1:
            self._max_counts = max_steps
            self._remainder_counts = max_steps % self._accumulative_counts

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's state and ours (counters, the balancer's)."""
        return {
            **super().state_dict(),
            "balancing": {
                "num_bad_in_row": self.num_bad_in_row,
                "num_skipped": self.num_skipped,
                "loss_scaler": None if self.scaler is None else self.scaler.state_dict(),
                **self.balanced.state_dict(),
            },
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        state = dict(state_dict)
        own = state.pop("balancing")
        super().load_state_dict(state)
        self.num_bad_in_row = int(own["num_bad_in_row"])
        self.num_skipped = int(own["num_skipped"])
        if self.scaler is not None:
            self.scaler.load_state_dict(own["loss_scaler"])
        self.balanced.load_state_dict(own)


def _as_balancer(balancer: Any) -> Balancer:
    if isinstance(balancer, Balancer):
        return balancer
    if balancer is None or isinstance(balancer, str | Mapping):
        return build_balancer(balancer)
    raise TypeError(
        f"optim_wrapper.balancer is {type(balancer).__name__} {balancer!r}; allowed: a name of "
        "perception.balancing.balancer_names(), a dict(name=..., ...) with arguments, an object of "
        "perception.balancing.Balancer or of a class derived from it, or None for the plain sum of the losses"
    )


def _as_scaler(options: dict[str, Any] | None, precision: str, resolved: str) -> LossScaler | None:
    if options is not None and precision not in ("fp16", "auto"):
        raise ValueError(
            f"loss_scale is {options}, but precision is {precision!r}, which needs none; leave it out, or use "
            "precision='fp16'"
        )
    allowed = set(inspect.signature(LossScaler).parameters)
    unknown = sorted(set(options or {}) - allowed)
    if unknown:
        raise ValueError(f"loss_scale has unknown keys {unknown}; allowed: {sorted(allowed)}")
    scaler = LossScaler(**(options or {}))
    return scaler if resolved == "fp16" else None


def _or_one(counts: Tensor) -> Tensor:
    """What a sum over targets is divided by: their count, 1 where there are none."""
    return torch.where(counts > 0, counts, 1.0)


def _name_some(names: list[str]) -> str:
    rest = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {rest} more" if rest > 0 else "")

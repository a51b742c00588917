"""How a step's task losses become gradients: one backward on a sum, or one per task.

Legend: T tasks, n parameters. A source gets every micro-batch of an accumulation window, then `finish` leaves the
update of the *global* batch in `p.grad`, the same on all ranks. Conflicts are always those of global gradients: local
ones are summed over ranks before anything is compared.

With a loss scale every backward runs on scaled losses, and every Gram matrix and update is that of the unscaled ones.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from perception.balancing import Balancer, TaskLosses
from perception.balancing.gradient_sketch import GradientSketch
from perception.balancing.shared_features import SharedFeatures
from perception.balancing.task_gradients import TaskGradients
from perception.balancing.task_reach import find_reach
from perception.engine.collectives import any_over_ranks, from_first_rank, sum_over_ranks, world_size
from perception.engine.gradient_sync import sum_gradients_over_ranks
from perception.engine.row_exchange import RowExchange, keep_parts, row_exchange

NonFinite = tuple[list[int], list[int]]
"""Indices of the tasks, and of the parameters, whose gradients are not finite."""


@dataclass(frozen=True, kw_only=True)
class MicroStep:
    """One micro-batch, as all ranks know it.

    Attributes:
        losses: local losses, with graphs.
        global_losses: (T,) float64, normalised over the ranks' targets, 0 where absent.
        shares: (P,) float64, factor that makes a part of the local losses this rank's share of the global one; P parts
            in the order of `losses.part_names`, T where each task is one part.
        present: (T,) bool, globally.
        factor: 1 / number of micro-batches in the window.
        loss_scale: what losses are multiplied by before a backward; the same in the whole window.
        ends_window: whether no other micro-batch follows in the window, as far as that is known.
    """

    losses: TaskLosses
    global_losses: Tensor
    shares: Tensor
    present: Tensor
    factor: float
    loss_scale: float = 1.0
    ends_window: bool = False

    def local_share(self, task: str) -> Tensor:
        """This rank's part of a task's loss in the window's mean, scaled, at least float32."""
        parts = []
        for share, name, owner in zip(
            self.shares.tolist(), self.losses.part_names, self.losses.part_tasks, strict=True
        ):
            if owner != task or name not in self.losses.parts:
                continue
            scale = share * self.factor * self.loss_scale
            loss = self.losses.parts[name].reshape(())
            loss = loss.to(torch.promote_types(loss.dtype, torch.float32))  # a scale can be beyond float16
            parts.append(loss if scale == 1.0 else loss * scale)
        return sum(parts[1:], start=parts[0])

    def weighted_sum(self, weights: Tensor, tasks: Collection[str] | None = None) -> Tensor | None:
        """Sum of the local shares times (T,) weights, of some tasks or all; None without a local loss."""
        terms = []
        for task in self.losses if tasks is None else [task for task in self.losses if task in tasks]:
            weight = float(weights[self.losses.task_names.index(task)])
            share = self.local_share(task)
            terms.append(share if weight == 1.0 else share * weight)
        return torch.stack(terms).sum() if terms else None


class SummedSource:
    """One backward on the weighted sum: for methods that need no task gradients.

    Args:
        balancer: weighs and combines, micro-batch by micro-batch.
        parameters: n trainable parameters.
        bucket_mb: largest message between ranks, MiB.
    """

    def __init__(self, balancer: Balancer, parameters: Sequence[Tensor], *, bucket_mb: float) -> None:
        self.balancer = balancer
        self.parameters = list(parameters)
        self.bucket_mb = bucket_mb

    def micro_step(self, step: MicroStep) -> NonFinite | None:
        """Backward."""
        weights = self.balancer.weigh(step.global_losses, step.present)
        coefficients = self.balancer.combine(weights * step.global_losses, step.present, None)
        self._backward(step.weighted_sum(weights * coefficients))
        return None

    def _backward(self, scalar: Tensor | None) -> None:
        if scalar is not None:
            scalar.backward()

    def finish(self, loss_scale: float) -> NonFinite | None:
        """Sum the gradients over ranks, unscaled."""
        sum_gradients_over_ranks(self.parameters, bucket_mb=self.bucket_mb)
        unscale_gradients(self.parameters, loss_scale)
        return None


class ParameterSource:
    """One backward per task, gradients held per task: the Gram matrix of the window's global gradients.

    The window's losses are weighed and combined once, at its end. On many ranks each keeps a part of every task's
    global gradient, multiplies it, and the parts' T x T products are added: the exact Gram matrix without any rank
    holding another's gradients. A method that works element by element, or adds products of its own, does so on the
    parts. A task's gradient is sent while the next task's backward runs. The parts' combination is put together to the
    update: in all (T + 1) / 2 times the bytes of plain training's one all-reduce.

    With a sketch the Gram matrix is nearly that (see `GradientSketch`), and one all-reduce of the combined local
    gradients is left. It is all that a method needs which only holds the gradients until the last forward.

    Args:
        balancer: its `combine` gets the Gram matrix, its `combine_block` and `observe_gradients` this rank's part of
            the gradients if they want it.
        parameters: n trainable parameters.
        num_tasks: T.
        bucket_mb: largest message between ranks, MiB.
        sketch: None: exact.

    Attributes:
        coefficients: (T,) of the last window, NaN for a task that was absent; None before the first.
        holders: n tensors in whose `grad` the update is left.
    """

    def __init__(
        self,
        balancer: Balancer,
        parameters: Sequence[Tensor],
        num_tasks: int,
        *,
        bucket_mb: float,
        sketch: GradientSketch | None = None,
    ) -> None:
        self.balancer = balancer
        self.parameters = self.holders = list(parameters)
        self.num_tasks = num_tasks
        self.bucket_mb = bucket_mb
        self.sketch = sketch
        self.coefficients: Tensor | None = None
        self._exchange: RowExchange | None = None
        self._pending: dict[int, Callable[[], Tensor]] = {}
        self._gradients: TaskGradients | None = None
        self._has_steps = False
        self._clear()

    def _clear(self) -> None:
        if self._gradients is not None:
            self._gradients.restart()
        self._pending = {}
        self._has_steps = False
        self._losses = torch.zeros(self.num_tasks, dtype=torch.float64)
        self._present = torch.zeros(self.num_tasks, dtype=torch.bool)

    def micro_step(self, step: MicroStep) -> NonFinite | None:
        """One backward per local task."""
        if self._gradients is None:
            # What is drawn for an element must not depend on how memory is laid out: ZeRO's is not the model's.
            is_row_major = self.balancer.needs_gradients
            self._gradients = TaskGradients(self.parameters, self.num_tasks, is_row_major=is_row_major)
            keeps_parts = world_size() > 1 and self._compares and self.sketch is None
            self._exchange = row_exchange(self._gradients, bucket_mb=self.bucket_mb) if keeps_parts else None
        self._count(step)
        tasks = [task for task in step.losses.task_names if task in step.losses]
        for task_idx, task in enumerate(step.losses.task_names):
            if task in tasks:
                add_gradient(self._gradients, step, task, retain_graph=task is not tasks[-1])
            if step.ends_window and self._present[task_idx]:
                self._send(task_idx)
        return None

    def _count(self, step: MicroStep) -> None:
        self._has_steps = True
        self._losses += step.global_losses * step.factor
        self._present |= step.present

    @property
    def _compares(self) -> bool:
        balancer = self.balancer
        return balancer.needs_gram or balancer.needs_gradients or balancer.observes_gradients

    def _send(self, task_idx: int) -> None:
        if self._exchange is not None and self._gradients is not None and task_idx not in self._pending:
            self._pending[task_idx] = self._exchange.start(self._gradients.row(task_idx))

    def finish(self, loss_scale: float) -> NonFinite | None:
        """Combine the global task gradients, unscaled, and leave the update in `p.grad`."""
        gradients, present = self._gradients, self._present
        if gradients is None or not self._has_steps:
            return None
        gradients.reached = any_over_ranks(gradients.reached)
        self._join(gradients)
        bad = bad_tasks(gradients)
        if bad:
            result = bad, bad_parameters(gradients)
            self._clear()
            return result
        held = gradients.held
        if loss_scale != 1.0:
            held *= 1.0 / loss_scale
        weights = from_first_rank(self.balancer.weigh(self._losses, present))
        gradients.scale_(torch.where(present, weights, 0.0))
        gram = self._gram(gradients) if self.balancer.needs_gram else None
        if gram is not None and not bool(gram.isfinite().all()):  # the squares overflowed
            self._clear()
            return (~gram.diagonal().isfinite()).nonzero().flatten().tolist(), []
        self.balancer.observe_gradients(gradients, sum_over_ranks)
        coefficients = from_first_rank(self.balancer.combine(weights * self._losses, present, gram))
        gather = None if self._exchange is None else self._exchange.gather
        options: dict[str, Any] = {"scale_heads": self.balancer.scale_heads, "gather": gather}
        if self.balancer.needs_gradients:
            update = gradients.combine_blocks(self.balancer.combine_block, present, **options)
        else:
            update = gradients.combine(coefficients, present, **options)
        for holder, value in zip(self.holders, update, strict=True):
            holder.grad = None if value is None else laid_out_like(holder, value)
        self._join_updates()
        self.coefficients = torch.where(present, coefficients.double(), torch.nan)
        self._clear()
        return None

    def _join(self, gradients: TaskGradients) -> None:
        """Make parts of global gradients of the local ones, where gradients are compared."""
        if self._exchange is not None:
            for task_idx in self._present.nonzero().flatten().tolist():
                self._send(task_idx)
            keep_parts(gradients, self._exchange, self._pending)

    def _join_updates(self) -> None:
        """Make the global update of the local ones, where it is not yet."""
        if self._exchange is None:
            sum_gradients_over_ranks(self.parameters, bucket_mb=self.bucket_mb)

    def _gram(self, gradients: TaskGradients) -> Tensor:
        if self.sketch is not None:
            sketched = sum_over_ranks(gradients.sketch(self.sketch, self._present))
            return sketched @ sketched.T
        gram = gradients.gram(self._present)
        return gram if self._exchange is None else sum_over_ranks(gram)


class FeatureSource:
    """One backward of the heads per task, then one of the trunk: conflicts measured on the shared features.

    Coefficients are those of each micro-batch. The global Gram matrix is the sum of the ranks': their features are
    different parts of one batch.

    Args:
        balancer: its `combine` gets the Gram matrix.
        parameters: n trainable parameters.
        features: the model's cut; its forwards run under `features.cut()`.
        bucket_mb: largest message between ranks, MiB.
    """

    def __init__(
        self,
        balancer: Balancer,
        parameters: Sequence[Tensor],
        features: SharedFeatures,
        *,
        bucket_mb: float,
    ) -> None:
        self.balancer = balancer
        self.parameters = list(parameters)
        self.features = features
        self.bucket_mb = bucket_mb
        self.coefficients: Tensor | None = None

    def micro_step(self, step: MicroStep) -> NonFinite | None:
        """Backward of the heads, task by task, then of the trunk; not that where the former are not finite."""
        names, leaves = step.losses.task_names, self.features.leaves
        if not leaves:
            raise ValueError(
                "gradient_source='features', but the model's forward did not pass anything through its "
                "shared_features. Call them on what the heads read, or use gradient_source='parameters'"
            )
        # Which parameters belong to heads is agreed on, as a rank without a task's labels does not see its head.
        reach = any_over_ranks(find_reach(step.losses, names, self.parameters))
        heads = [p for p, reached in zip(self.parameters, reach.any(dim=0).tolist(), strict=True) if reached]
        gradients = TaskGradients([*leaves, *heads], len(names), num_features=len(leaves))
        tasks = list(step.losses)
        for task in tasks:
            add_gradient(gradients, step, task, retain_graph=task is not tasks[-1])
        gradients.reached[:, len(leaves) :] = reach[:, reach.any(dim=0)]
        weights = from_first_rank(self.balancer.weigh(step.global_losses, step.present))
        gradients.scale_(torch.where(step.present, weights, 0.0))
        # The rows stay scaled: the trunk's backward starts from them.
        gram = sum_over_ranks(gradients.gram(step.present)) / step.loss_scale**2
        if not bool(gram.isfinite().all()):
            return bad_tasks(gradients), []
        coefficients = self.balancer.combine(weights * step.global_losses, step.present, gram)
        coefficients = from_first_rank(coefficients)
        update = gradients.combine(coefficients, step.present, scale_heads=self.balancer.scale_heads)
        for parameter, value in zip(heads, update[len(leaves) :], strict=True):
            if value is not None:
                parameter.grad = value if parameter.grad is None else parameter.grad + value
        pairs = [
            (root, gradient)
            for root, gradient in zip(self.features.roots, update[: len(leaves)], strict=True)
            if root.requires_grad and gradient is not None
        ]
        if pairs:
            torch.autograd.backward([root for root, _ in pairs], [gradient for _, gradient in pairs])
        self.features.clear()
        self.coefficients = torch.where(step.present, coefficients.double(), torch.nan)
        return None

    def finish(self, loss_scale: float) -> NonFinite | None:
        """Sum the gradients over ranks, unscaled."""
        sum_gradients_over_ranks(self.parameters, bucket_mb=self.bucket_mb)
        unscale_gradients(self.parameters, loss_scale)
        return None


class ReusedSource:
    """One backward on the weighted sum, with coefficients from elsewhere; a task's own parameters are scaled or not.

    Args:
        balancer: weighs the losses and says whether heads are scaled.
        parameters: n trainable parameters.
        bucket_mb: largest message between ranks, MiB.

    Attributes:
        coefficients: (T,) to use; a task for which there is none (NaN) takes the mean of the others.
        totals: (T,) factors of the unweighted gradients in the last backward, NaN for a task that was absent.
    """

    def __init__(self, balancer: Balancer, parameters: Sequence[Tensor], *, bucket_mb: float) -> None:
        self.balancer = balancer
        self.parameters = list(parameters)
        self.bucket_mb = bucket_mb
        self.coefficients: Tensor | None = None
        self.totals: Tensor | None = None
        self._reach: dict[tuple[bool, ...], Tensor] = {}

    def micro_step(self, step: MicroStep) -> NonFinite | None:
        """Backward."""
        assert self.coefficients is not None
        weights = from_first_rank(self.balancer.weigh(step.global_losses, step.present))
        self.balancer.reuse(weights * step.global_losses, step.present)
        self.backward(step, weights, self.coefficients)
        return None

    def backward(self, step: MicroStep, weights: Tensor, coefficients: Tensor) -> None:
        """Backward with (T,) loss weights and (T,) coefficients."""
        known = torch.where(coefficients.isnan(), coefficients.nanmean(), coefficients)
        self.totals = torch.where(step.present, (weights * known).double(), torch.nan)
        scaled = step.weighted_sum(weights * known)
        own = [] if self.balancer.scale_heads else self._own_parameters(step)
        if scaled is None:
            return
        if not own:
            scaled.backward()
            return
        plain = step.weighted_sum(weights)
        assert plain is not None
        gradients = torch.autograd.grad(plain, own, retain_graph=True, allow_unused=True)
        numbers = {id(parameter) for parameter in own}
        scaled.backward(inputs=[p for p in self.parameters if id(p) not in numbers])
        for parameter, value in zip(own, gradients, strict=True):
            if value is not None:
                parameter.grad = value if parameter.grad is None else parameter.grad + value

    def _own_parameters(self, step: MicroStep) -> list[Tensor]:
        key = tuple(step.present.tolist())
        if key not in self._reach:  # the same on all ranks, so all of them walk and agree
            reach = find_reach(step.losses, step.losses.task_names, self.parameters)
            self._reach[key] = any_over_ranks(reach)
        counts = self._reach[key][step.present].sum(dim=0).tolist()
        return [parameter for parameter, count in zip(self.parameters, counts, strict=True) if count == 1]

    def finish(self, loss_scale: float) -> NonFinite | None:
        """Sum the gradients over ranks, unscaled."""
        sum_gradients_over_ranks(self.parameters, bucket_mb=self.bucket_mb)
        unscale_gradients(self.parameters, loss_scale)
        return None


class LastLayerSource(ReusedSource):
    """Conflicts measured on the last shared layer's parameters, then one backward with the coefficients.

    *Source*: the layer on which GradNorm (Chen et al. 2018) and IMTL-G's cheap form take gradients. Coefficients are
    those of each micro-batch.

    Args:
        balancer: its `combine` gets the Gram matrix.
        parameters: n trainable parameters.
        last_layer: parameters of the last layer that tasks share.
        bucket_mb: largest message between ranks, MiB.
    """

    def __init__(
        self,
        balancer: Balancer,
        parameters: Sequence[Tensor],
        last_layer: Sequence[Tensor],
        *,
        bucket_mb: float,
    ) -> None:
        super().__init__(balancer, parameters, bucket_mb=bucket_mb)
        self.last_layer = list(last_layer)

    def micro_step(self, step: MicroStep) -> NonFinite | None:
        """T gradients of one layer, then a backward; not that where the former are not finite."""
        gradients = TaskGradients(self.last_layer, len(step.present), num_features=len(self.last_layer))
        for task in step.losses:
            add_gradient(gradients, step, task, retain_graph=True)
        gradients.rows = sum_over_ranks(gradients.rows)
        weights = from_first_rank(self.balancer.weigh(step.global_losses, step.present))
        gradients.scale_(torch.where(step.present, weights, 0.0))
        gram = gradients.gram(step.present) / step.loss_scale**2
        if not bool(gram.isfinite().all()):
            return bad_tasks(gradients), []
        coefficients = self.balancer.combine(weights * step.global_losses, step.present, gram)
        coefficients = from_first_rank(coefficients)
        self.coefficients = torch.where(step.present, coefficients.double(), torch.nan)
        self.backward(step, weights, self.coefficients)
        return None


def add_gradient(gradients: TaskGradients, step: MicroStep, task: str, *, retain_graph: bool) -> None:
    """Add a local task's gradient to its row.

    Raises:
        ValueError: the loss has no graph.
    """
    share = connected_share(step, task)
    gradients.add(step.losses.task_names.index(task), share, retain_graph=retain_graph)


def connected_share(step: MicroStep, task: str) -> Tensor:
    """A local task's `local_share`.

    Raises:
        ValueError: the loss has no graph.
    """
    share = step.local_share(task)
    if share.grad_fn is None:
        raise ValueError(
            f"the loss of task {task!r} is not connected to any parameter, so it has no gradient. Compute it from the "
            "model's outputs without detach(), or leave the task out of the loss dict"
        )
    return share


def laid_out_like(parameter: Tensor, values: Tensor) -> Tensor:
    """Values of a parameter's shape with its strides too: fused optimisers walk through memory."""
    if values.stride() == parameter.stride():
        return values
    return torch.empty_like(parameter, requires_grad=False).copy_(values)


def bad_parameters(gradients: TaskGradients) -> list[int]:
    """Parameters for which a task's gradient is not finite on any rank; every rank must call this."""
    flags = torch.zeros(len(gradients.parameters), dtype=torch.bool)
    flags[gradients.bad_parameters()] = True
    return any_over_ranks(flags).nonzero().flatten().tolist()


def bad_tasks(gradients: TaskGradients) -> list[int]:
    """Tasks whose gradient is not finite on any rank; every rank must call this."""
    flags = torch.zeros(len(gradients.reached), dtype=torch.bool)
    flags[gradients.bad_rows()] = True
    return any_over_ranks(flags).nonzero().flatten().tolist()


def unscale_gradients(parameters: Sequence[Tensor], loss_scale: float) -> None:
    """Divide the gradients of scaled losses by the scale, in place."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if loss_scale != 1.0 and gradients:
        torch._foreach_mul_(gradients, 1.0 / loss_scale)

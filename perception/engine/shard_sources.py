"""Gradients of sharded weights: each task's is added over ranks while its backward runs, and only parts are kept.

No rank ever has a whole gradient, a bucket of it at most, let alone one per task; the update stays in parts too.

Legend: N ranks, T tasks, n parameters.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from perception.balancing import Balancer
from perception.balancing.task_gradients import TaskGradients
from perception.balancing.task_reach import find_reach
from perception.engine.collectives import any_over_ranks, comm_device, sum_over_ranks, world_size
from perception.engine.gradient_sources import (
    MicroStep,
    NonFinite,
    ParameterSource,
    SummedSource,
    connected_share,
    unscale_gradients,
)
from perception.engine.rank_notes import exchange
from perception.engine.row_exchange import BucketSum, start_bucket

Keep = Callable[[int, Tensor], None]


class GradientStream:
    """Runs backward passes whose gradients are dealt out to the ranks in buckets, as soon as a bucket is complete.

    The order of buckets is that of the parameters from behind, the same on all ranks. A rank without a loss gives
    zeros, and so does one whose loss does not reach a parameter.

    Args:
        parameters: n.
        shards: this rank's part of each, of ceil(elements / N) elements.
        bucket_mb: largest message of a rank, in MiB, where a parameter is not larger.
    """

    def __init__(self, parameters: Sequence[Tensor], shards: Sequence[Tensor], *, bucket_mb: float) -> None:
        self.parameters = list(parameters)
        self.shards = list(shards)
        self._buckets: list[list[int]] = [[]]
        size = 0.0
        for number in reversed(range(len(self.parameters))):
            num_bytes = len(self.shards[number]) * world_size() * self.shards[number].element_size()
            if self._buckets[-1] and size + num_bytes > bucket_mb * 2**20:
                self._buckets.append([])
                size = 0
            self._buckets[-1].append(number)
            size += num_bytes
        self._bucket_of = {number: idx for idx, bucket in enumerate(self._buckets) for number in bucket}
        self._is_running = False
        self._found: dict[int, Tensor] = {}
        self._missing: list[set[int]] = []
        self._num_sent = 0
        self._pending: list[tuple[list[int], BucketSum]] = []
        for number, parameter in enumerate(self.parameters):
            parameter.register_post_accumulate_grad_hook(partial(self._take, number))

    def run(self, loss: Tensor | None, keep: Keep, *, retain_graph: bool) -> Tensor:
        """One backward. Every rank must call this, with or without a loss.

        Args:
            loss: this rank's part.
            keep: gets the number of each parameter and this rank's part of its gradient, summed over ranks.
            retain_graph: as of a backward.

        Returns:
            (n,) bool, which parameters this rank's loss reaches.
        """
        losses = {} if loss is None else {"": loss}
        reached = find_reach(losses, ("",), self.parameters)[0]
        self._missing = [{number for number in bucket if reached[number]} for bucket in self._buckets]
        self._found, self._num_sent, self._keep = {}, 0, keep
        self._is_running = True
        try:
            self._send_complete()
            if loss is not None and bool(reached.any()):
                inputs = [
                    p for p, is_reached in zip(self.parameters, reached.tolist(), strict=True) if is_reached
                ]
                torch.autograd.backward(loss, retain_graph=retain_graph, inputs=inputs)
        finally:
            self._is_running = False
        self._missing = [set() for _ in self._buckets]
        self._send_complete()
        with exchange("end of a task gradient's sum"):
            self._receive(is_last=True)
        return reached

    def _take(self, number: int, parameter: Tensor) -> None:
        """Called by autograd when a parameter's gradient is there."""
        if not self._is_running:
            return
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None
        self._found[number] = gradient
        missing = self._missing[self._bucket_of[number]]
        missing.remove(number)
        if not missing:
            self._send_complete()

    def _send_complete(self) -> None:
        while self._num_sent < len(self._buckets) and not self._missing[self._num_sent]:
            bucket = self._buckets[self._num_sent]
            self._pending.append((bucket, start_bucket(self._block(bucket))))
            self._num_sent += 1
            self._receive(is_last=False)

    @torch.no_grad()
    def _block(self, bucket: Sequence[int]) -> Tensor:
        """(N * piece,): what each rank gets, one rank after the other."""
        ranks = world_size()
        sizes = [len(self.shards[number]) for number in bucket]
        block = self.shards[bucket[0]].new_zeros(ranks, sum(sizes))
        for number, place in zip(bucket, block.split(sizes, dim=1), strict=True):
            gradient = self._found.pop(number, None)
            if gradient is not None:
                flat = gradient.reshape(-1)
                place.copy_(F.pad(flat, (0, place.numel() - len(flat))).view(ranks, -1))
        return block.view(-1).to(comm_device())

    def _receive(self, *, is_last: bool) -> None:
        """Keep what has arrived. Not to wait in mid-backward: others may wait for weights of this rank."""
        while self._pending and (is_last or self._pending[0][1].is_there()):
            bucket, bucket_sum = self._pending.pop(0)
            parts = bucket_sum.wait().to(self.shards[0].device)
            sizes = [len(self.shards[number]) for number in bucket]
            for number, part in zip(bucket, parts.split(sizes), strict=True):
                self._keep(number, part)


class ShardSource(ParameterSource):
    """As `ParameterSource`, exact, of sharded weights: the update is left in the `grad` of this rank's parts.

    Args:
        balancer: its `combine` gets the Gram matrix; it does not read the gradients themselves.
        stream: of the trainable parameters.
        num_tasks: T.
    """

    def __init__(self, balancer: Balancer, stream: GradientStream, num_tasks: int) -> None:
        super().__init__(balancer, stream.parameters, num_tasks, bucket_mb=0.0)
        self.holders = stream.shards
        self.stream = stream

    def micro_step(self, step: MicroStep) -> NonFinite | None:
        """One backward per local task."""
        if self._gradients is None:
            self._gradients = TaskGradients(self.stream.shards, self.num_tasks)
        self._count(step)
        tasks = [task for task in step.losses.task_names if task in step.losses]
        for task_idx, task in enumerate(step.losses.task_names):
            if step.present[task_idx]:
                loss = connected_share(step, task) if task in tasks else None
                keep = partial(self._gradients.put, task_idx)
                reached = self.stream.run(loss, keep, retain_graph=task not in tasks[-1:])
                self._gradients.reached[task_idx] |= reached
        return None

    def _join(self, gradients: TaskGradients) -> None:
        """They are sums already."""

    def _join_updates(self) -> None:
        """It is made of sums."""

    def _gram(self, gradients: TaskGradients) -> Tensor:
        return sum_over_ranks(gradients.gram(self._present))


class SummedShardSource(SummedSource):
    """As `SummedSource`, of sharded weights: the update is left in the `grad` of this rank's parts.

    Args:
        balancer: weighs and combines, micro-batch by micro-batch.
        stream: of the trainable parameters.
    """

    def __init__(self, balancer: Balancer, stream: GradientStream) -> None:
        super().__init__(balancer, stream.parameters, bucket_mb=0.0)
        self.stream = stream
        self._gradients = TaskGradients(stream.shards, 1)

    def _backward(self, scalar: Tensor | None) -> None:
        reached = self.stream.run(scalar, partial(self._gradients.put, 0), retain_graph=False)
        self._gradients.reached[0] |= reached

    def finish(self, loss_scale: float) -> NonFinite | None:
        """Leave the update, unscaled."""
        gradients = self._gradients
        gradients.reached = any_over_ranks(gradients.reached)
        update = gradients.assemble(gradients.held[0], torch.ones(1, dtype=torch.bool))
        for shard, value in zip(self.stream.shards, update, strict=True):
            shard.grad = value
        unscale_gradients(self.stream.shards, loss_scale)
        gradients.restart()
        return None

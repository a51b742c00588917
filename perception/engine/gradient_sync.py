"""Sum gradients over ranks in buckets: our own reduction, in place of DDP's reducer.

DDP's reducer fires once per backward and knows nothing of tasks; a balancing method needs the local gradients first
and exactly one reduction of what it made of them. So models run under `no_sync` and this is the one reduction.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from perception.engine.collectives import comm_device, world_size
from perception.engine.rank_notes import exchange


def sum_gradients_over_ranks(parameters: Sequence[Tensor], *, bucket_mb: float = 25.0) -> None:
    """Replace each parameter's gradient by the sum over ranks, in place.

    A parameter without a gradient on this rank counts as zeros; one without a gradient on every rank keeps None, so
    that the optimiser leaves it alone as it would on one rank. Every rank must call this with the same parameters.

    Args:
        parameters: trainable parameters, in the same order on every rank.
        bucket_mb: largest message, in MiB; the buckets' reductions overlap.
    """
    if world_size() == 1 or not parameters:
        return
    has_grad = torch.tensor(
        [parameter.grad is not None for parameter in parameters], dtype=torch.int32, device=comm_device()
    )
    with exchange("which parameters have a gradient"):
        dist.all_reduce(has_grad, op=dist.ReduceOp.MAX)
        present_anywhere = has_grad.tolist()
    gradients = []
    for parameter, present in zip(parameters, present_anywhere, strict=True):
        if not present:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    with exchange("sum of gradients"):
        _sum_in_buckets(gradients, limit=int(bucket_mb * 2**20))


def _sum_in_buckets(gradients: Sequence[Tensor], *, limit: int) -> None:
    pending = []
    for bucket in _buckets(gradients, limit=limit):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        pending.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
    for bucket, flat, work in pending:
        work.wait()
        summed = flat.split([gradient.numel() for gradient in bucket])
        for gradient, values in zip(bucket, summed, strict=True):
            gradient.copy_(values.view_as(gradient))


def _buckets(gradients: Sequence[Tensor], *, limit: int) -> list[list[Tensor]]:
    buckets: list[list[Tensor]] = []
    size = 0
    for gradient in gradients:
        num_bytes = gradient.numel() * gradient.element_size()
        is_full = not buckets or size + num_bytes > limit or buckets[-1][0].dtype != gradient.dtype
        if is_full:
            buckets.append([])
            size = 0
        buckets[-1].append(gradient)
        size += num_bytes
    return buckets

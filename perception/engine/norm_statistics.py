"""Running statistics of normalisation layers: undone for a skipped step, and the same on every rank.

Each rank's batch norms see its own samples. Local statistics make history frames, which run in evaluation mode
and read them, depend on the rank, and a checkpoint, which holds one rank's, no exact state of the run.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from perception.engine.collectives import comm_device, world_size
from perception.engine.rank_notes import exchange


class NormStatistics:
    """A copy of the running statistics that a training forward changes, to undo them for a skipped step.

    Args:
        model: its normalisation layers in training mode are copied.
    """

    def __init__(self, model: nn.Module) -> None:
        self._copies = [(buffer, buffer.clone()) for buffer in _trained_buffers(model)]

    def restore(self) -> None:
        """Put the statistics back."""
        for buffer, copy in self._copies:
            buffer.copy_(copy)


@torch.no_grad()
def average_norm_statistics(model: nn.Module) -> None:
    """Replace the running statistics of layers in training mode by their mean over ranks, in one message.

    With equal statistics before the step, the mean of the updated ones is what the mean of the ranks' batch statistics
    gives. Variances are averaged like means: the spread between the ranks' means is left out. The mean is taken in
    float64, so that statistics that are equal already stay so to the bit, for any number of ranks.

    Every rank must call this at the same point; nothing happens on one rank.

    Args:
        model: the bare model.
    """
    if world_size() == 1:
        return
    buffers = [buffer for buffer in _trained_buffers(model) if buffer.is_floating_point()]
    if not buffers:
        return
    flat = torch.cat([buffer.reshape(-1).double() for buffer in buffers]).to(comm_device())
    with exchange("running statistics"):
        dist.all_reduce(flat)
    means = (flat / world_size()).split([buffer.numel() for buffer in buffers])
    for buffer, mean in zip(buffers, means, strict=True):
        buffer.copy_(mean.view_as(buffer))


def _trained_buffers(model: nn.Module) -> list[Tensor]:
    return [
        buffer
        for module in model.modules()
        if isinstance(module, _NormBase) and module.training
        for buffer in module.buffers(recurse=False)
    ]

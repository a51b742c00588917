"""Long rows summed over ranks, of which each rank keeps a part.

Legend: N ranks, P columns, S columns of this rank's part.
"""

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from perception.balancing.task_gradients import TaskGradients
from perception.engine.collectives import comm_device, rank, world_size
from perception.engine.rank_notes import exchange

# torch 2.13 gave them these names, and warns of the older ones.
_IS_RENAMED = hasattr(dist, "all_gather_single")
ALL_GATHER = "all_gather_single" if _IS_RENAMED else "all_gather_into_tensor"
REDUCE_SCATTER = "reduce_scatter_single" if _IS_RENAMED else "reduce_scatter_tensor"


@dataclass(frozen=True)
class _Bucket:
    start: int
    end: int
    piece: int  # columns of a rank; the last ones may have fewer

    def owned_by(self, owner: int) -> tuple[int, int]:
        first = min(self.start + owner * self.piece, self.end)
        return first, min(first + self.piece, self.end)


class RowExchange:
    """Adds (P,) rows over the ranks, part by part, and puts parts together again.

    Columns are dealt out in buckets of N pieces, so that a bucket is sent while the next one is still being made. Each
    direction sends (N - 1) / N of a row from each rank: half of an all-reduce. gloo's own reduce-scatter moves as much
    as an all-reduce; there the pieces are swapped and added here, in the order of ranks.

    Args:
        num_columns: P, the same on every rank.
        dtype: of the rows.
        bucket_mb: largest message of a rank, in MiB.

    Attributes:
        owned: ascending column ranges (start, end) of this rank's part.

    Example:
        >>> exchange = RowExchange(3, dtype=torch.float32, bucket_mb=25.0)  # on one rank
        >>> part = exchange.start(torch.tensor([1.0, 2.0, 3.0]))()
        >>> part.tolist(), exchange.gather(part).tolist()
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    """

    def __init__(self, num_columns: int, *, dtype: torch.dtype, bucket_mb: float) -> None:
        ranks = world_size()
        size = max(1, int(bucket_mb * 2**20) // dtype.itemsize // ranks) * ranks
        self._buckets = [
            _Bucket(
                start, min(start + size, num_columns), -(-(min(start + size, num_columns) - start) // ranks)
            )
            for start in range(0, num_columns, size)
        ]
        self.num_columns = num_columns
        self.owned = [bucket.owned_by(rank()) for bucket in self._buckets]

    def start(self, row: Tensor) -> Callable[[], Tensor]:
        """Begin to add a row over ranks. Every rank must call this, with rows in the same order.

        Args:
            row: (P,), unchanged until the result was fetched.

        Returns:
            Function that waits, and gives the sum's (S,) on the row's device.
        """
        if world_size() == 1:
            return lambda: row
        with exchange("start of a task gradient's sum"):
            pending = [start_bucket(self._padded(row, bucket)) for bucket in self._buckets]

        def finish() -> Tensor:
            with exchange("end of a task gradient's sum"):
                pieces = [
                    one.wait()[: end - first] for one, (first, end) in zip(pending, self.owned, strict=True)
                ]
            return torch.cat(pieces).to(row.device)

        return finish

    def gather(self, part: Tensor) -> Tensor:
        """The whole (P,) of which each rank has its (S,)."""
        if world_size() == 1:
            return part
        with exchange("combined gradient of all parts"):
            return self._gather(part)

    def _gather(self, part: Tensor) -> Tensor:
        device = comm_device()
        whole = part.new_empty(self.num_columns)
        pending = []
        offset = 0
        for bucket, (first, end) in zip(self._buckets, self.owned, strict=True):
            piece = part[offset : offset + end - first].to(device)
            offset += end - first
            missing = bucket.piece - len(piece)
            piece = F.pad(piece, (0, missing)) if missing else piece.contiguous()
            received = piece.new_empty(bucket.piece * world_size())
            gather = getattr(dist, ALL_GATHER)
            pending.append((bucket, received, gather(received, piece, async_op=True)))
        for bucket, received, work in pending:
            work.wait()
            whole[bucket.start : bucket.end].copy_(received[: bucket.end - bucket.start])
        return whole

    def _padded(self, row: Tensor, bucket: _Bucket) -> Tensor:
        block = row[bucket.start : bucket.end].to(comm_device())
        missing = bucket.piece * world_size() - len(block)
        return F.pad(block, (0, missing)) if missing else block  # padding by nothing would copy the row


@dataclass(frozen=True)
class BucketSum:
    """A sum of (N * piece,) blocks over ranks that is under way.

    Attributes:
        work: the collective.
        received: what comes.
        block: what is sent, held until it is.
        piece: elements of each rank.
    """

    work: Any
    received: Tensor
    block: Tensor
    piece: int

    def is_there(self) -> bool:
        """Whether `wait` would not wait."""
        return bool(self.work.is_completed())

    def wait(self) -> Tensor:
        """This rank's (piece,)."""
        self.work.wait()
        return self.received.view(-1, self.piece).sum(dim=0)


def start_bucket(block: Tensor) -> BucketSum:
    """Begin to add (N * piece,) blocks over ranks, on the backend's device; every rank must call this."""
    piece = len(block) // world_size()
    swaps = dist.get_backend() == "gloo"
    received = block.new_empty(len(block) if swaps else piece)
    add = dist.all_to_all_single if swaps else getattr(dist, REDUCE_SCATTER)
    return BucketSum(add(received, block, async_op=True), received, block, piece)


def row_exchange(gradients: TaskGradients, *, bucket_mb: float) -> RowExchange:
    """What adds up these gradients over ranks, part by part."""
    return RowExchange(gradients.rows.shape[1], dtype=gradients.rows.dtype, bucket_mb=bucket_mb)


def keep_parts(
    gradients: TaskGradients, exchange: RowExchange, pending: MutableMapping[int, Callable[[], Tensor]]
) -> None:
    """Leave in `gradients` this rank's part of the ranks' sum.

    Args:
        gradients: local ones.
        exchange: what they were sent by.
        pending: task number → what waits for its part, in the order of sending; the other tasks are zeros. It is
            emptied, as each entry holds what its task received.
    """
    num_columns = sum(end - start for start, end in exchange.owned)
    part = gradients.rows.new_zeros(len(gradients.rows), num_columns)
    for task_idx in list(pending):
        part[task_idx] = pending.pop(task_idx)()
    gradients.keep_part(part, exchange.owned)

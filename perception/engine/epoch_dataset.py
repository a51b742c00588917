"""How a sample learns its epoch, in whatever process it is made: the index carries it.

`dataset.set_epoch` called in the main process is not seen by loader workers that persist from epoch to epoch. So the
sampler yields `EpochIndex` values, and `EpochDataset`, which runs in the worker, sets the epoch where it differs.
"""

import os
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info


class EpochIndex(int):
    """A sample index that knows its epoch.

    Example:
        >>> index = EpochIndex.of(7, epoch=2)
        >>> index + 1, index.epoch
        (8, 2)
    """

    epoch: int

    @classmethod
    def of(cls, index: int, *, epoch: int) -> "EpochIndex":
        """Index `index` in epoch `epoch`."""
        made = cls(index)
        made.epoch = epoch
        return made

    def __reduce__(self) -> tuple:
        return (_rebuild, (int(self), self.epoch))


def _rebuild(index: int, epoch: int) -> EpochIndex:
    return EpochIndex.of(index, epoch=epoch)


class VisitIndex(EpochIndex):
    """The index of a sample that an epoch may hold more than once.

    Attributes:
        visit: a number that no two visits of this sample have in common, in all of the training.
    """

    visit: int

    @classmethod
    def in_visit(cls, index: int, *, epoch: int, visit: int) -> "VisitIndex":
        """Index `index` in epoch `epoch`."""
        made = cls(index)
        made.epoch, made.visit = epoch, visit
        return made

    def __reduce__(self) -> tuple:
        return (_rebuild_in_visit, (int(self), self.epoch, self.visit))


def _rebuild_in_visit(index: int, epoch: int, visit: int) -> VisitIndex:
    return VisitIndex.in_visit(index, epoch=epoch, visit=visit)


class StreamIndex(EpochIndex):
    """The index of a frame in a stream.

    Attributes:
        previous: index of the frame that its stream had just before; None where it has no history.
        visit: a number that all frames have which belong together, and others have not.
    """

    previous: int | None
    visit: int

    @classmethod
    def in_stream(cls, index: int, *, epoch: int, previous: int | None, visit: int) -> "StreamIndex":
        """Index `index` in epoch `epoch`, behind `previous`."""
        made = cls(index)
        made.epoch, made.previous, made.visit = epoch, previous, visit
        return made

    def __reduce__(self) -> tuple:
        return (_rebuild_in_stream, (int(self), self.epoch, self.previous, self.visit))


def _rebuild_in_stream(index: int, epoch: int, previous: int | None, visit: int) -> StreamIndex:
    return StreamIndex.in_stream(index, epoch=epoch, previous=previous, visit=visit)


class EpochDataset(Dataset):
    """A map-style dataset that passes the epoch of each index on to the dataset which it wraps.

    Everything else (`metainfo`, `scene_tokens`, ...) is the wrapped dataset's.

    Args:
        dataset: any map-style dataset; `set_epoch(epoch)` is called if it has it. Frames of streams come from its
            `read_streamed(index, previous=, visit=)`, samples that an epoch may hold more than once from its
            `read_visit(index, visit=)` if it has that.
        num_workers: of the loader.

    Attributes:
        reading: (num_workers, 2) int64 in shared memory: each worker's process, and the index that it read last.
    """

    def __init__(self, dataset: Any, *, num_workers: int = 0) -> None:
        self.dataset = dataset
        self.reading: Tensor = torch.full((num_workers, 2), -1, dtype=torch.int64)
        if num_workers:
            self.reading.share_memory_()
        self._epoch: int | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        if (worker := get_worker_info()) is not None and worker.id < len(self.reading):
            self.reading[worker.id, 0], self.reading[worker.id, 1] = os.getpid(), int(index)
        epoch = getattr(index, "epoch", None)
        if epoch is not None and epoch != self._epoch and hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)
            self._epoch = epoch
        if isinstance(index, StreamIndex):
            return self.dataset.read_streamed(int(index), previous=index.previous, visit=index.visit)
        if isinstance(index, VisitIndex) and hasattr(self.dataset, "read_visit"):
            return self.dataset.read_visit(int(index), visit=index.visit)
        return self.dataset[int(index)]

    def __getattr__(self, name: str) -> Any:
        # Only called for what this class lacks. Private names are excluded: copying and pickling ask for them before
        # `dataset` exists.
        if name.startswith("_") or name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)

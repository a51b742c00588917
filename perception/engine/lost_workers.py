"""What a loader worker that died was reading."""

import re
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from torch.utils.data import DataLoader

from perception.engine.epoch_dataset import EpochDataset
from perception.utils import DataError

# torch's own words, from its SIGCHLD handler or from the wait for a batch.
_LOST = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (.+)")
_NOTICE_S = 2.0


@contextmanager
def name_lost_samples(loader: DataLoader) -> Iterator[None]:
    """An error about a dead worker of this loader becomes one that names the sample; it may come at any point inside.

    Args:
        loader: made by `build_dataloader`.

    Raises:
        DataError: a worker was killed or crashed; with the sample that it was reading.
    """
    try:
        try:
            yield
        except (EOFError, OSError):
            # The connection of a process that dies breaks a moment before torch's handler of SIGCHLD raises its error.
            time.sleep(_NOTICE_S)
            raise
    except RuntimeError as error:
        found = _LOST.match(str(error))
        processes = [] if found is None else re.findall(r"\d+", found[1])
        tokens = _read_last(loader, [int(process) for process in processes])
        if found is None or not tokens:
            raise
        _end_workers(loader, error)
        how = found[2].split(". ")[0].rstrip(".")
        raise DataError(
            f"a loader worker (process {', '.join(processes)}) {how}; it read the sample named here last. The usual "
            "reason is that memory ran out: lower num_workers or prefetch_factor of the loader",
            sample_token=", ".join(tokens),
        ) from error


def _end_workers(loader: DataLoader, error: BaseException) -> None:
    """Let go of the loader's iterator, which ends the other workers; each end would raise the same error again."""
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGCHLD, lambda *_: None) if is_main else None
    try:
        loader._iterator = None  # of persistent workers; others' is held by the frames that the error left
        earlier: BaseException | None = error
        while earlier is not None:
            traceback.clear_frames(earlier.__traceback__)
            earlier = earlier.__context__
    finally:
        if is_main:
            signal.signal(signal.SIGCHLD, handler)


def _read_last(loader: DataLoader, processes: list[int]) -> list[str]:
    """Tokens of the samples, or their numbers where the data set has no tokens."""
    dataset = loader.dataset
    if not isinstance(dataset, EpochDataset):
        return []
    tokens = getattr(dataset, "sample_tokens", None)
    return [
        f"number {index}" if tokens is None else str(tokens[index])
        for process, index in dataset.reading.tolist()
        if process in processes
    ]

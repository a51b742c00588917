"""One rank that fails ends them all: soon, and each with the reason.

A rank that waits in a collective learns of another one's end only when that process is gone: over gloo the connection
closes, and torchrun stops the others (SIGTERM, SIGKILL after 30 s, which is what ends a wait inside NCCL). What is left
to do is to go quickly, and to leave word of the reason where the others find it. In between, and where nobody stops the
others, the ranks' watch tells them (see `rank_watch`).
"""

import atexit
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from perception.engine.collectives import leave_process_group, rank, world_size
from perception.engine.rank_watch import stop_watch, tell_failure, told_failure

_KEY = "perception/first_failure"


class RankFailure(RuntimeError):
    """Another rank failed, so this one cannot go on; the message says which one and why."""


@contextmanager
def fail_together() -> Iterator[None]:
    """What runs inside ends with an error on all ranks if it does on one; on a single rank nothing is changed.

    Raises:
        RankFailure: in place of the lost connection, on the ranks that did not fail themselves.
    """
    try:
        yield
    except KeyboardInterrupt:
        tell_failure(f"rank {rank()}: interrupted")
        raise
    except SystemExit:  # all ranks agreed to stop
        stop_watch()
        raise
    except Exception as error:
        if world_size() == 1:
            raise
        # Leaving in order may wait for ranks that now wait for this one.
        atexit.unregister(leave_process_group)
        is_about_others = type(error) is RuntimeError or isinstance(error, dist.DistError)
        if is_about_others and (reason := _read_reason() or told_failure()):
            tell_failure(reason)
            raise RankFailure(f"this rank stops, because another one failed: {reason}") from error
        message = f"rank {rank()}: {type(error).__name__}: {error}"
        _leave_reason(message)
        tell_failure(message)
        raise
    else:
        stop_watch()


def _leave_reason(message: str) -> None:
    try:
        dist.distributed_c10d._get_default_store().compare_set(_KEY, "", message)
    except RuntimeError:
        pass  # the store's own host has ended, so nobody could read it


def _read_reason() -> str:
    """The first failure that was recorded, "" if none was or its record went with the rank that kept it."""
    try:
        store = dist.distributed_c10d._get_default_store()
        return store.get(_KEY).decode("utf-8") if store.check([_KEY]) else ""
    except RuntimeError:
        return ""

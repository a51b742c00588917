"""Watches over the ranks of a job: one that hangs or ends is named, and the others do not wait for it.

Each rank has a thread that sends its note (see `rank_notes`) to the first rank's every second or so. There they are
judged (see `rank_verdict`), and the verdict goes to all. A process that is killed closes its connection at once; one
that is stopped keeps it, but sends nothing. All this needs no collective and no backend's own watchdog, and goes on
while the training threads wait in one.
"""

import faulthandler
import json
import multiprocessing
import os
import sys
import threading
from typing import Any, NoReturn

import torch.distributed as dist

from perception.engine._watch_threads import Hub, Member, WatchThread
from perception.engine.collectives import rank, world_size
from perception.engine.rank_notes import reset_note
from perception.engine.rank_verdict import Verdict
from perception.utils import get_logger

logger = get_logger("engine")

HUNG = 5
"""Exit code of every rank of a job in which one hangs."""

_FAILED = 1
_GRACE_S = 3.0  # for the training thread to notice by itself that another rank failed
_MESSAGE_S = 2.0  # for words on the way
_KEY = "perception/rank_watch/{}"

_thread: WatchThread | None = None
_num_started = 0


def start_watch(*, timeout_s: float, slow_timeout_s: float) -> None:
    """Watch from now on until `stop_watch` or `tell_failure`. Every rank must call this; on one rank it does nothing.

    Args:
        timeout_s: seconds after which a rank hangs that gives no sign or keeps the others waiting.
        slow_timeout_s: the latter for parts of the run that may be slow, see `RankNote`.
    """
    global _thread, _num_started
    if world_size() == 1 or _thread is not None:
        return
    _num_started += 1
    reset_note()
    store, key = dist.distributed_c10d._get_default_store(), _KEY.format(_num_started)
    options: dict[str, Any] = dict(
        num_ranks=world_size(), timeout_s=timeout_s, slow_timeout_s=slow_timeout_s, conclude=_conclude
    )
    if rank() == 0:
        hub = Hub(is_one_host=_is_one_host(), **options)
        store.set(key, json.dumps([hub.port, hub.token]))
        _thread = hub
    else:
        port, token = json.loads(store.get(key))
        host = "127.0.0.1" if _is_one_host() else os.environ["MASTER_ADDR"]
        try:
            _thread = Member(rank=rank(), address=(host, port), token=token, **options)
        except OSError as error:
            logger.warning(
                "rank %d is not watched for hangs: no connection to %s:%d (%s)", rank(), host, port, error
            )
            return
    _thread.start()


def stop_watch() -> None:
    """This rank has finished in order."""
    global _thread
    if _thread is not None:
        _thread.say_goodbye(wait_s=_MESSAGE_S)
        _thread = None


def tell_failure(message: str) -> None:
    """This rank is about to end for a reason of its own; the others are told.

    Args:
        message: the reason, with the rank's number.
    """
    global _thread
    if _thread is not None:
        _thread.tell(message, wait_s=_MESSAGE_S)
        _thread = None


def told_failure() -> str:
    """Why another rank ended, as far as the watch knows or learns within two seconds; the caller ends this one."""
    global _thread
    if _thread is None:
        return ""
    verdict = _thread.wait_for_verdict(_MESSAGE_S)
    if verdict is None:
        return ""
    _thread.take_over()
    _thread = None
    return verdict.message


def end_process(code: int) -> NoReturn:
    """Leave at once, with the loader workers: an orderly end would wait for them, and may wait for other ranks."""
    try:
        for child in multiprocessing.active_children():
            child.kill()
    finally:
        os._exit(code)


def _is_one_host() -> bool:
    is_local = os.environ.get("MASTER_ADDR") in ("localhost", "127.0.0.1", "::1")
    return is_local or os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE")


def _conclude(verdict: Verdict, own_rank: int, is_taken_over: threading.Event) -> None:
    """End this process; called in the watch's thread."""
    if verdict.kind == "failed" and is_taken_over.wait(_GRACE_S):
        return
    # The training thread may hold a lock that writing needs.
    writer = threading.Thread(target=_report, args=(verdict, own_rank), daemon=True)
    writer.start()
    writer.join(_MESSAGE_S)
    end_process(HUNG if verdict.kind == "hung" else _FAILED)


def _report(verdict: Verdict, own_rank: int) -> None:
    prefix = "" if verdict.kind == "hung" else "this rank stops, because another one failed: "
    print(f"perception: error: rank {own_rank}: {prefix}{verdict.message}", file=sys.stderr, flush=True)
    if verdict.kind == "hung" and own_rank in verdict.ranks:
        faulthandler.dump_traceback(all_threads=True)
    logger.error("%s%s", prefix, verdict.message)


def _forget() -> None:
    # A loader worker must not hold open the connection by whose end the others notice that its rank is gone.
    global _thread
    if _thread is not None:
        _thread.close_in_child()
        _thread = None


os.register_at_fork(after_in_child=_forget)

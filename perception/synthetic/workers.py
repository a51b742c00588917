"""The same function for many tasks, in this process or in several."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

from perception.synthetic._warm_up import warm_up


def count_workers(wanted: int | None, num_tasks: int) -> int:
    """Return as many processes as wanted (None: one per available core), not more than there are tasks."""
    return max(1, min(wanted or len(os.sched_getaffinity(0)), num_tasks))


def run_tasks(function: Callable[..., Any], tasks: Sequence[tuple], workers: int) -> Iterator[Any]:
    """Yield `function(*task)` for each task, with several workers in the order in which they finish."""
    if workers == 1:
        for task in tasks:
            yield function(*task)
        return
    warm_up()  # compile once here, so that the workers find the code in the cache
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = [pool.submit(function, *task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise

"""Compilation of numeric kernels, with the compiled code cached where the installation allows it."""

from __future__ import annotations

import functools
import os
import threading
import types
from collections.abc import Callable
from typing import Any, TypeVar

import numba
import torch

_POOL = threading.Lock()
_IMPORTED_BY = os.getpid()

F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """Compile a function with numba; cache the machine code on disk where a place for it can be written.

    numba keeps the cache beside the source or, in a read-only installation, in the user's cache folder. Where neither
    can be written it raises RuntimeError; then the function is compiled anew in each process instead. No fast-math,
    so results do not depend on where the code was compiled.
    """
    return _compile(function)


def parallel_kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """As `kernel`, its loops over ``numba.prange`` shared out among as many threads as torch has; others may run too.

    In a forked child one thread does it all: the parent's threads are not there, and numba would end the process.
    """
    together = _compile(function, nogil=True, parallel=True)
    # numba's cache knows a function by its name: under one name, one machine code would be taken for the other.
    namesake = types.FunctionType(function.__code__, function.__globals__)
    namesake.__qualname__ = f"{function.__qualname__}_alone"
    alone = _compile(namesake, nogil=True)

    @functools.wraps(function)
    def run(*arguments: Any) -> Any:
        num_threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
        if num_threads == 1 or os.getpid() != _IMPORTED_BY:
            return alone(*arguments)
        # One of numba's pools, which it takes where there is no OpenMP, can't be entered twice.
        with _POOL:
            numba.set_num_threads(num_threads)
            return together(*arguments)

    return run


def reordering_kernel(function: F) -> F:
    """As `kernel`, and sums may be added in another order, so by vectors.

    Their length is the machine's, so that last bits differ between machines.
    """
    return _compile(function, nogil=True, fastmath={"reassoc"})


def _compile(function: F, **options: Any) -> F:
    try:
        compiled: F = numba.njit(cache=True, **options)(function)
    except RuntimeError:
        compiled = numba.njit(**options)(function)
    return compiled

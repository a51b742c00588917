"""Compilation of numeric kernels, with the compiled code cached where the installation allows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """Compile a function with numba; cache the machine code on disk where a place for it can be written.

    numba keeps the cache beside the source or, in a read-only installation, in the user's cache folder. Where neither
    can be written it raises RuntimeError; then the function is compiled anew in each process instead. No fast-math,
    so results do not depend on where the code was compiled.
    """
    return _compile(function)


def threaded_kernel(function: F) -> F:
    """As `kernel`, and other threads may run while the function does."""
    return _compile(function, nogil=True)


def reordering_kernel(function: F) -> F:
    """As `threaded_kernel`, and sums may be added in another order, so by vectors.

    Their length is the machine's, so that last bits differ between machines.
    """
    return _compile(function, nogil=True, fastmath={"reassoc"})


def _compile(function: F, **options: Any) -> F:
    try:
        compiled: F = numba.njit(cache=True, **options)(function)
    except RuntimeError:
        compiled = numba.njit(**options)(function)
    return compiled

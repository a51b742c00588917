"""The one way in which scalabel and bdd100k are imported: with pydantic 1 in place of pydantic 2 meanwhile.

scalabel 0.3.1 is written for pydantic 1 and breaks with pydantic 2, which DeepSpeed needs. pydantic 2 carries the old
one as `pydantic.v1`.
"""

import importlib
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

_lock = threading.Lock()


def toolkit_module(name: str) -> ModuleType:
    """A module of scalabel or of bdd100k.

    Args:
        name: e.g. "scalabel.label.io".

    Raises:
        ImportError: the toolkit is not installed, or has no such module.

    Example:
        >>> toolkit_module("scalabel.label.transforms").box2d_to_bbox.__name__
        'box2d_to_bbox'
    """
    with _lock:
        if name in sys.modules:
            return sys.modules[name]
        try:
            with _pydantic_1(), _same_log_handlers():
                return importlib.import_module(name)
        except ImportError as error:
            raise ImportError(
                f"BDD100K's own evaluation needs its toolkit, and {name} cannot be imported ({error}); install it by "
                "`pip install -e .[bdd100k]`",
                name=error.name,
            ) from error


@contextmanager
def _pydantic_1() -> Iterator[None]:
    current = importlib.import_module("pydantic")
    # Of pydantic 1 itself, its part `v1` is there too since 1.10.17; then both are the same.
    sys.modules["pydantic"] = importlib.import_module("pydantic.v1")
    try:
        yield
    finally:
        sys.modules["pydantic"] = current


@contextmanager
def _same_log_handlers() -> Iterator[None]:
    """Both packages call `logging.basicConfig` when imported, which would print the program's log lines twice."""
    root = logging.getLogger()
    handlers = list(root.handlers)
    try:
        yield
    finally:
        root.handlers[:] = handlers

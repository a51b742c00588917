"""Progress of long loops: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import track

Item = TypeVar("Item")

_SECONDS_BETWEEN_LINES = 10.0


def show_progress(
    items: Iterable[Item], description: str, *, total: int | None = None, is_enabled: bool = True
) -> Iterator[Item]:
    """Yield the items and report on stderr how far the loop has come.

    Args:
        items: what to iterate over.
        description: a few words, e.g. "Indexing scenes".
        total: number of items; taken from `items` where it has a length.
        is_enabled: False reports nothing.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    if not is_enabled:
        yield from items
        return
    if sys.stderr.isatty():
        yield from track(items, description, total=total, console=Console(stderr=True))
        return
    start = last_line = time.monotonic()
    count = 0
    for count, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last_line >= _SECONDS_BETWEEN_LINES:
            print(f"{description}: {count}/{'?' if total is None else total}", file=sys.stderr, flush=True)
            last_line = now
    print(f"{description}: {count} done in {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)

"""Progress on standard error: one moving line on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

Item = TypeVar("Item")

_SECONDS_BETWEEN_LINES = 5.0
_SECONDS_BETWEEN_REDRAWS = 0.1


class Progress:
    """Counts what is done.

    Args:
        description: a few words, e.g. "Indexing train".
        total: number of things in all; None where it is not known.
        unit: what is counted.
        is_enabled: False keeps silent.
    """

    def __init__(
        self, description: str, *, total: int | None, unit: str = "items", is_enabled: bool = True
    ) -> None:
        self._description, self._total, self._unit = description, total, unit
        self._is_enabled = is_enabled
        self._is_tty = sys.stderr.isatty()
        self._done = 0
        self._start = self._last = time.monotonic()

    def advance(self, num: int = 1) -> None:
        """Report `num` more things done."""
        self._done += num
        now = time.monotonic()
        pause = _SECONDS_BETWEEN_REDRAWS if self._is_tty else _SECONDS_BETWEEN_LINES
        if self._is_enabled and now - self._last >= pause and self._done != self._total:
            self._last = now
            self._write(self._text(now))

    def close(self) -> None:
        """Say how long it took."""
        if self._is_enabled:
            seconds = time.monotonic() - self._start
            self._write(f"{self._description}: {self._done} {self._unit} in {seconds:.1f} s", is_last=True)

    def _text(self, now: float) -> str:
        rate = self._done / max(now - self._start, 1e-6)
        text = f"{self._description}: {self._done}"
        if self._total is None:
            return f"{text} {self._unit}, {rate:.1f}/s"
        left = (self._total - self._done) / rate if rate else 0.0
        return f"{text}/{self._total} {self._unit}, {rate:.1f}/s, {left:.0f} s left"

    def _write(self, text: str, *, is_last: bool = False) -> None:
        if not self._is_tty:
            text = f"{text}\n"
        else:
            filled = round(30 * self._done / self._total) if self._total else 0
            text = f"\r[{'#' * filled}{'.' * (30 - filled)}] {text}\x1b[K" + ("\n" if is_last else "")
        sys.stderr.write(text)
        sys.stderr.flush()


def show_progress(
    items: Iterable[Item], description: str, *, total: int | None = None, is_enabled: bool = True
) -> Iterator[Item]:
    """Yield the items and report how far the loop has come.

    Args:
        items: what to iterate over.
        description: a few words.
        total: number of items; taken from `items` where it has a length.
        is_enabled: False reports nothing.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    progress = Progress(description, total=total, is_enabled=is_enabled)
    for item in items:
        yield item
        progress.advance()
    progress.close()

"""Progress on standard error: one moving line on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time


class Progress:
    """Counts finished samples.

    Args:
        total: samples in all.
        enabled: False keeps silent.
    """

    def __init__(self, *, total: int, enabled: bool) -> None:
        self._total, self._enabled = total, enabled
        self._done = 0
        self._start = self._last = time.monotonic()
        self._is_tty = sys.stderr.isatty()

    def advance(self, num: int) -> None:
        """Report `num` more finished samples."""
        self._done += num
        now = time.monotonic()
        if not self._enabled or (not self._is_tty and now - self._last < 5.0 and self._done < self._total):
            return
        self._last = now
        rate = self._done / max(now - self._start, 1e-6)
        left = (self._total - self._done) / rate if rate else 0.0
        text = f"synthesize: {self._done}/{self._total} samples, {rate * 6:.1f} images/s, {left:.0f} s left"
        if self._is_tty:
            filled = int(30 * self._done / self._total)
            end = "\n" if self._done == self._total else ""
            sys.stderr.write(f"\r[{'#' * filled}{'.' * (30 - filled)}] {text}   {end}")
        else:
            sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def note(self, text: str) -> None:
        """Say something on a line of its own."""
        if self._enabled:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()

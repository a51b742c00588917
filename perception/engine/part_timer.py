"""A clock that counts each moment of a step to exactly one named part."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

REST = "rest"


class PartTimer:
    """Seconds and calls per part, over steps.

    Parts nest: while an inner one runs, the outer one's clock stands. What no part covers is "rest", so that the parts
    add up to the steps by construction and nothing is negative.

    Args:
        device: on CUDA the clock waits for the device at every reading, so that a part has the time of its kernels.
        clock: seconds.

    Attributes:
        seconds: part → seconds in all steps.
        calls: part → how often it was entered in all steps.
        num_steps: finished steps.

    Example:
        >>> ticks = iter(range(10))
        >>> timer = PartTimer(torch.device("cpu"), clock=lambda: float(next(ticks)))
        >>> timer.begin_step()
        >>> with timer.part("backbone"):
        ...     pass
        >>> timer.end_step()
        >>> timer.seconds
        {'rest': 2.0, 'backbone': 1.0}
    """

    def __init__(self, device: torch.device, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = {}
        self.calls: Counter[str] = Counter()
        self.num_steps = 0
        self._device = device
        self._clock = clock
        self._stack: list[str] = []
        self._last = 0.0

    @property
    def current(self) -> str | None:
        """The part that is counted now; None outside of a step."""
        return self._stack[-1] if self._stack else None

    def begin_step(self) -> None:
        """Start counting, to "rest"."""
        self._stack = [REST]
        self._last = self._now()

    def end_step(self) -> None:
        """Stop counting."""
        self._charge()
        self._stack = []
        self.num_steps += 1

    def enter(self, part: str) -> None:
        """Count to a part until `leave`."""
        self._charge()
        self._stack.append(part)
        self.calls[part] += 1

    def leave(self) -> None:
        """Count to the outer part again."""
        self._charge()
        self._stack.pop()

    def switch(self, part: str) -> None:
        """Count to another part in the place of the current one."""
        self._charge()
        self._stack[-1] = part

    @contextmanager
    def part(self, part: str) -> Iterator[None]:
        """Count what is inside to a part."""
        self.enter(part)
        try:
            yield
        finally:
            self.leave()

    def _charge(self) -> None:
        now = self._now()
        current = self._stack[-1]
        self.seconds[current] = self.seconds.get(current, 0.0) + now - self._last
        self._last = now

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return self._clock()

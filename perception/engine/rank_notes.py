"""What this rank last did that concerns the others, for the watch that names a rank that hangs (see `rank_watch`).

The training thread only writes here, which takes a few microseconds; the watch's thread reads and sends.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace


@dataclass
class RankNote:
    """Where a rank is.

    Attributes:
        num_changes: grows with everything that is noted.
        num_entered: exchanges between ranks entered so far. All ranks enter the same ones in the same order.
        exchange: the last one.
        is_inside: whether it has not returned yet.
        place: step, batch or other part of the run.
        is_slow: whether this part may take long on one rank while others wait: start, first steps, saving, scoring.
    """

    num_changes: int = 0
    num_entered: int = 0
    exchange: str = ""
    is_inside: bool = False
    place: str = "start"
    is_slow: bool = True

    def describe(self) -> str:
        """In words.

        Example:
            >>> RankNote(num_entered=3, exchange="sum of gradients", is_inside=True, place="step 17").describe()
            "in step 17, in exchange 3 ('sum of gradients')"
        """
        if not self.num_entered:
            return f"in {self.place}, before any exchange"
        where = "in" if self.is_inside else "after"
        return f"in {self.place}, {where} exchange {self.num_entered} ('{self.exchange}')"


_note = RankNote()
_depth = 0
_prepare: Callable[[], None] | None = None


def read_note() -> RankNote:
    """A copy of this rank's note."""
    return replace(_note)


def reset_note() -> None:
    """Begin again, as all ranks do at the start of a watch."""
    global _note, _depth
    _note, _depth = RankNote(), 0


def at(place: str, *, is_slow: bool = False) -> None:
    """Note where the run is.

    Args:
        place: a few words.
        is_slow: see `RankNote`.
    """
    _note.place, _note.is_slow = place, is_slow
    _note.num_changes += 1


@contextmanager
def slow_part(place: str) -> Iterator[None]:
    """What runs inside may take long on one rank while the others wait for it; then the run is where it was."""
    before = _note.place, _note.is_slow
    at(place, is_slow=True)
    try:
        yield
    finally:
        at(before[0], is_slow=before[1])


def before_exchanges(prepare: Callable[[], None]) -> Callable[[], None]:
    """Have something done before each exchange, as on all ranks, until the function returned is called."""
    global _prepare
    outer, _prepare = _prepare, prepare

    def stop() -> None:
        global _prepare
        _prepare = outer

    return stop


@contextmanager
def exchange(what: str) -> Iterator[None]:
    """What runs inside waits for the other ranks. Every rank must enter the same exchanges in the same order.

    A collective that only begins inside is an exchange, and the wait for its end another one.

    Args:
        what: a few words for the message that names a hang.

    Example:
        >>> reset_note()
        >>> with exchange("sum of gradients"):
        ...     read_note().describe()
        "in start, in exchange 1 ('sum of gradients')"
    """
    global _depth
    if _prepare is not None:
        _prepare()
    outer = _note.exchange
    _depth += 1
    _note.exchange, _note.is_inside = what, True
    _note.num_entered += 1
    _note.num_changes += 1
    try:
        yield
    finally:
        _depth -= 1
        if _depth:
            _note.exchange = outer
        _note.is_inside = _depth > 0
        _note.num_changes += 1

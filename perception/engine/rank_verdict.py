"""Who hangs: judged from the ranks' notes alone, without a clock or a connection of its own."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from perception.engine.rank_notes import RankNote

# The rest of a timeout is for notes that are on their way, for the message and for ending the processes.
VERDICT_SHARE = 0.8
_MAX_NAMED = 5


@dataclass(frozen=True)
class Verdict:
    """Why the job ends.

    Attributes:
        kind: "hung", or "failed" for a rank that ended or said why it is about to.
        ranks: those to blame.
        message: names them, what they did last, and who waits.
    """

    kind: Literal["hung", "failed"]
    ranks: tuple[int, ...]
    message: str


@dataclass
class _Seen:
    note: RankNote = field(default_factory=RankNote)
    heard: float = math.inf  # a rank that never came is late, not silent
    changed: float = 0.0


class RollCall:
    """Collects the ranks' notes and judges them.

    A rank hangs if it gives no sign of life for `timeout_s`: its process is stopped, or its machine is gone. Or if, for
    that long, no rank did anything new, and some wait in an exchange that it has not entered. A rank in a slow part
    (see `RankNote`) may take `slow_timeout_s` until the others' wait counts.

    Args:
        num_ranks: in the job.
        timeout_s: seconds.
        slow_timeout_s: seconds.
        now: seconds on the clock of all calls.

    Example:
        >>> roll = RollCall(num_ranks=2, timeout_s=100.0, slow_timeout_s=1000.0, now=0.0)
        >>> waiting = RankNote(num_changes=9, num_entered=5, exchange="losses", is_inside=True, place="step 2")
        >>> for now in (0.0, 50.0, 90.0):
        ...     roll.hear(0, waiting, now)
        ...     roll.hear(1, RankNote(num_changes=8, num_entered=4, place="step 2", is_slow=False), now)
        >>> roll.judge(90.0).ranks
        (1,)
    """

    def __init__(self, *, num_ranks: int, timeout_s: float, slow_timeout_s: float, now: float) -> None:
        self.timeout_s = timeout_s
        self.slow_timeout_s = slow_timeout_s
        self._seen = {number: _Seen(changed=now) for number in range(num_ranks)}

    def hear(self, rank: int, note: RankNote, now: float) -> None:
        """A rank's note has come."""
        seen = self._seen[rank]
        if note.num_changes != seen.note.num_changes or math.isinf(seen.heard):
            seen.changed = now
        seen.note, seen.heard = note, now

    def leave(self, rank: int) -> None:
        """A rank has finished."""
        self._seen.pop(rank, None)

    def last_seen(self, rank: int) -> str:
        """Where a rank was, in words."""
        return self._seen[rank].note.describe()

    def judge(self, now: float) -> Verdict | None:
        """Who hangs, if anybody does."""
        if not self._seen:
            return None
        silent = [
            rank for rank, seen in self._seen.items() if now - seen.heard > VERDICT_SHARE * self.timeout_s
        ]
        if silent:
            return self._blame(silent, f"no sign of life for {now - self._seen[silent[0]].heard:.0f} s")
        foremost = max(self._seen.values(), key=lambda seen: seen.note.num_entered).note
        late = [rank for rank, seen in self._seen.items() if seen.note.num_entered < foremost.num_entered]
        inside = [rank for rank, seen in self._seen.items() if seen.note.is_inside]
        blamed = late or inside
        is_slow = any(self._seen[rank].note.is_slow for rank in blamed)
        limit = VERDICT_SHARE * (self.slow_timeout_s if is_slow else self.timeout_s)
        quiet = now - max(seen.changed for seen in self._seen.values())
        if not blamed or quiet <= limit:
            return None
        what = f"exchange {foremost.num_entered} ('{foremost.exchange}')"
        if late:
            return self._blame(late, f"not arrived at {what} for {quiet:.0f} s")
        return self._blame(
            inside, f"{what} has not ended for {quiet:.0f} s, though every rank has entered it"
        )

    def _blame(self, blamed: Sequence[int], reason: str) -> Verdict:
        others = [rank for rank in self._seen if rank not in blamed]
        verb = "hangs" if len(blamed) == 1 else "hang"
        message = f"{_name(blamed)} {verb}: {reason}; last seen {self._places(blamed)}"
        if others:
            message += (
                f". {_name(others)} {'was' if len(others) == 1 else 'were'} last seen {self._places(others)}"
            )
        return Verdict("hung", tuple(blamed), message)

    def _places(self, ranks: Sequence[int]) -> str:
        places: dict[str, list[int]] = {}
        for rank in ranks:
            places.setdefault(self.last_seen(rank), []).append(rank)
        if len(places) == 1:
            return next(iter(places))
        named = [f"{place} ({_name(there)})" for place, there in places.items()]
        return "; ".join(named[:_MAX_NAMED]) + ("; ..." if len(named) > _MAX_NAMED else "")


def _name(ranks: Sequence[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    named = ", ".join(map(str, ranks[:_MAX_NAMED]))
    return f"ranks {named}" + (f" and {len(ranks) - _MAX_NAMED} more" if len(ranks) > _MAX_NAMED else "")

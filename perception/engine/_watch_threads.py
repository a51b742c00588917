"""The threads and connections of the ranks' watch: `Hub` on the first rank, `Member` on the others.

Both sides send lines of JSON over TCP. A member: once `{"rank", "token"}`, then its notes, at last "bye" or
`{"failed": reason}`. The hub: "tick", at last "bye" or `{"verdict": ...}`. Who has said its last word waits for the
other side to close, because closing with unread words would throw away those on their way.
"""

import hmac
import json
import secrets
import selectors
import socket
import threading
import time
from abc import abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from perception.engine.rank_notes import RankNote, read_note
from perception.engine.rank_verdict import VERDICT_SHARE, RollCall, Verdict
from perception.utils import get_logger

logger = get_logger("engine")

_MAX_LINE = 2**16
_PATIENCE_S = 1.0
_MAX_NOTES_PER_S = 500
_CONNECT_S = 30.0

Conclude = Callable[[Verdict, int, threading.Event], None]


class _OwnClock:
    """Seconds in which this process ran: time during which the whole job was stopped makes nobody silent."""

    def __init__(self, most: float) -> None:
        self._most, self._last, self.now = most, time.monotonic(), 0.0

    def turn(self) -> float:
        current = time.monotonic()
        self.now += min(current - self._last, self._most)
        self._last = current
        return self.now


class _Lines:
    """A connection without blocking, line by line.

    Attributes:
        connection: the socket.
        rank: of the other side; None as long as it is not known.
        has_ended: whether nothing more will come.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.rank: int | None = None
        self.has_ended = False
        self._rest = b""

    def receive(self) -> list[Any]:
        """What has come."""
        try:
            data = self.connection.recv(_MAX_LINE)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        *lines, self._rest = (self._rest + data).split(b"\n")
        self.has_ended = not data or len(self._rest) > _MAX_LINE
        try:
            return [json.loads(line) for line in lines]
        except (ValueError, RecursionError):
            self.has_ended = True
            return []

    def send(self, content: Any, *, is_last: bool = False) -> None:
        """Send a line; where the other side takes none, its silence shows."""
        with suppress(OSError):
            self.connection.send(json.dumps(content).encode("utf-8") + b"\n")
            if is_last:
                self.connection.shutdown(socket.SHUT_WR)

    def drain(self, until: float) -> None:
        """Read until the other side closes."""
        while not self.has_ended and (left := until - time.monotonic()) > 0:
            self.connection.settimeout(left)
            self.receive()


class WatchThread(threading.Thread):
    """What both sides share.

    Args:
        rank: of this process.
        num_ranks: in the job.
        timeout_s: see `start_watch`.
        conclude: called in this thread with a verdict, the rank, and the event of `take_over`.
    """

    def __init__(self, *, rank: int, num_ranks: int, timeout_s: float, conclude: Conclude) -> None:
        super().__init__(name="rank watch", daemon=True)
        self.rank = rank
        self.timeout_s = timeout_s
        # The first rank hears so many notes a second at most.
        self.interval = min(max(1.0, num_ranks / _MAX_NOTES_PER_S), timeout_s / 20)
        self._conclude = conclude
        self._verdict: Verdict | None = None
        self._last_word: Any = None
        self._has_decided, self._is_taken_over = threading.Event(), threading.Event()
        self._selector = selectors.DefaultSelector()
        self._woken, self._waker = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ)

    # ------------------------------------------------------------------ for the training thread

    def say_goodbye(self, *, wait_s: float) -> None:
        """Leave in order."""
        self._end_with("bye", wait_s)

    def tell(self, message: str, *, wait_s: float) -> None:
        """Tell the others why this rank fails, and leave."""
        self._end_with({"failed": message}, wait_s)

    def wait_for_verdict(self, wait_s: float) -> Verdict | None:
        """The verdict, if one comes in that time."""
        self._has_decided.wait(wait_s)
        return self._verdict

    def take_over(self) -> None:
        """The training thread ends the process itself."""
        self._is_taken_over.set()

    def close_in_child(self) -> None:
        """Close what a forked process inherited, and leave the parent's alone."""
        self._close()

    def _end_with(self, word: Any, wait_s: float) -> None:
        self._last_word = word
        self._is_taken_over.set()
        with suppress(OSError):
            self._waker.send(b"\0")
        self.join(wait_s)

    # ------------------------------------------------------------------ the thread

    def run(self) -> None:
        """Until a word or a verdict ends it."""
        try:
            self._watch()
        except Exception as error:  # noqa: BLE001  the training goes on without the watch, and says so
            logger.warning("the ranks are no longer watched for hangs: %s: %s", type(error).__name__, error)
            self._verdict, self._last_word = None, "bye"
        self._leave()
        self._close()
        if self._verdict is not None:
            self._has_decided.set()
            self._conclude(self._verdict, self.rank, self._is_taken_over)

    def _watch(self) -> None:
        clock = _OwnClock(2 * self.interval)
        due = 0.0
        while not (self._verdict or self._last_word):
            for key, _ in self._selector.select(self.interval):
                if key.data is not None:
                    key.data()
            if (now := clock.turn()) >= due and not (self._verdict or self._last_word):
                due = now + self.interval
                self._beat(now)

    def _close(self) -> None:
        for connection in (self._woken, self._waker, *self._connections()):
            connection.close()
        self._selector.close()

    @abstractmethod
    def _connections(self) -> list[socket.socket]: ...

    @abstractmethod
    def _beat(self, now: float) -> None: ...

    @abstractmethod
    def _leave(self) -> None: ...


class Hub(WatchThread):
    """The first rank's: hears all, judges, and tells all.

    Args:
        num_ranks: in the job.
        is_one_host: whether all ranks are on this machine, so that no other one needs to connect.
        timeout_s: see `start_watch`.
        slow_timeout_s: see `start_watch`.
        conclude: see `WatchThread`.

    Attributes:
        port: to connect to.
        token: without which a connection is refused.
    """

    def __init__(
        self,
        *,
        num_ranks: int,
        is_one_host: bool,
        timeout_s: float,
        slow_timeout_s: float,
        conclude: Conclude,
    ) -> None:
        super().__init__(rank=0, num_ranks=num_ranks, timeout_s=timeout_s, conclude=conclude)
        self._roll = RollCall(
            num_ranks=num_ranks, timeout_s=timeout_s, slow_timeout_s=slow_timeout_s, now=0.0
        )
        self._server = _listen(is_one_host, backlog=num_ranks)
        self._server.setblocking(False)
        self._selector.register(self._server, selectors.EVENT_READ, self._accept)
        self._links: list[_Lines] = []
        self._now = 0.0
        self.port: int = self._server.getsockname()[1]
        self.token = secrets.token_hex(16)

    def _connections(self) -> list[socket.socket]:
        return [self._server, *(lines.connection for lines in self._links)]

    def _accept(self) -> None:
        with suppress(OSError):
            lines = _Lines(self._server.accept()[0])
            self._links.append(lines)
            self._selector.register(lines.connection, selectors.EVENT_READ, lambda: self._hear(lines))

    def _hear(self, lines: _Lines) -> None:
        for word in lines.receive():
            if lines.rank is None:
                lines.rank = self._rank_of(word)
                if lines.rank is None:
                    self._drop(lines)
                    return
                self._roll.hear(lines.rank, RankNote(), self._now)  # it may be stopped before its first note
            elif word == "bye":
                self._roll.leave(lines.rank)
                self._drop(lines)
                return
            elif "failed" in word:
                self._verdict = self._verdict or Verdict("failed", (lines.rank,), word["failed"])
                return
            else:
                self._roll.hear(lines.rank, RankNote(**word["note"]), self._now)
        if lines.has_ended and lines.rank is None:
            self._drop(lines)
        elif lines.has_ended and lines.rank is not None:
            seen = self._roll.last_seen(lines.rank)
            message = f"rank {lines.rank}: its process ended without a word (killed?), last seen {seen}"
            self._verdict = self._verdict or Verdict("failed", (lines.rank,), message)

    def _rank_of(self, greeting: Any) -> int | None:
        """Whose greeting it is; None of a stranger's."""
        if not isinstance(greeting, dict) or not isinstance(greeting.get("rank"), int):
            return None
        token = str(greeting.get("token")).encode("utf-8", "replace")  # as text it would have to be ASCII
        is_ours = hmac.compare_digest(token, self.token.encode("utf-8"))
        return greeting["rank"] if is_ours else None

    def _drop(self, lines: _Lines) -> None:
        self._links.remove(lines)
        self._selector.unregister(lines.connection)
        lines.connection.close()

    def _beat(self, now: float) -> None:
        self._now = now
        self._roll.hear(0, read_note(), now)
        for lines in self._members():
            lines.send("tick")
        self._verdict = self._roll.judge(now)

    def _leave(self) -> None:
        word = self._last_word
        if self._verdict is not None:
            word = {"verdict": [self._verdict.kind, self._verdict.ranks, self._verdict.message]}
        elif word != "bye":
            word = {"verdict": ["failed", [0], word["failed"]]}
        members = self._members()
        for lines in members:
            lines.send(word, is_last=True)
        until = time.monotonic() + _PATIENCE_S
        for lines in members:
            lines.drain(until)

    def _members(self) -> list[_Lines]:
        return [lines for lines in self._links if lines.rank is not None]


class Member(WatchThread):
    """Any other rank's: sends its notes, and hears the verdict.

    Args:
        rank: of this process.
        num_ranks: in the job.
        address: host and port of the hub.
        token: the hub's.
        timeout_s: see `start_watch`.
        slow_timeout_s: the hub's affair.
        conclude: see `WatchThread`.

    Raises:
        OSError: no connection.
    """

    def __init__(
        self,
        *,
        rank: int,
        num_ranks: int,
        address: tuple[str, int],
        token: str,
        timeout_s: float,
        slow_timeout_s: float,
        conclude: Conclude,
    ) -> None:
        connection = socket.create_connection(address, timeout=_CONNECT_S)
        super().__init__(rank=rank, num_ranks=num_ranks, timeout_s=timeout_s, conclude=conclude)
        self._lines = _Lines(connection)
        self._lines.send({"rank": rank, "token": token})
        self._selector.register(connection, selectors.EVENT_READ, self._hear)
        self._heard: float | None = None

    def _connections(self) -> list[socket.socket]:
        return [self._lines.connection]

    def _hear(self) -> None:
        self._heard = None
        for word in self._lines.receive():
            if word == "bye":
                self._last_word = "bye"
            elif isinstance(word, dict):
                kind, ranks, message = word["verdict"]
                self._verdict = Verdict(kind, tuple(ranks), message)
        if self._lines.has_ended and self._last_word is None and self._verdict is None:
            self._verdict = Verdict("failed", (0,), "rank 0: its process ended without a word (killed?)")

    def _beat(self, now: float) -> None:
        self._lines.send({"note": asdict(read_note())})
        self._heard = now if self._heard is None else self._heard
        if now - self._heard > VERDICT_SHARE * self.timeout_s:
            message = (
                f"rank 0 hangs: no sign of life for {now - self._heard:.0f} s. Rank {self.rank} was last seen "
                f"{read_note().describe()}"
            )
            self._verdict = Verdict("hung", (0,), message)

    def _leave(self) -> None:
        if self._last_word is not None:
            self._lines.send(self._last_word, is_last=True)
            self._lines.drain(time.monotonic() + _PATIENCE_S)


def _listen(is_one_host: bool, *, backlog: int) -> socket.socket:
    if is_one_host:
        return socket.create_server(("127.0.0.1", 0), backlog=backlog)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=backlog)
    return socket.create_server(("", 0), backlog=backlog)

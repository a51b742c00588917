"""The watch's threads, without processes: hub and members in one."""

import json
import queue
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from perception.cli import exit_codes
from perception.engine import RankWatchHook, default_hooks, rank_watch
from perception.engine._watch_threads import Hub, Member
from perception.engine.rank_verdict import Verdict

Verdicts = queue.Queue  # of (rank, verdict)


class Job:
    """A hub and two members with short timeouts."""

    def __init__(self, *, timeout_s: float) -> None:
        self.verdicts: Verdicts = queue.Queue()
        options: dict[str, Any] = dict(
            num_ranks=3, timeout_s=timeout_s, slow_timeout_s=1000.0, conclude=self._conclude
        )
        self.hub = Hub(is_one_host=True, **options)
        address = ("127.0.0.1", self.hub.port)
        self.members = [
            Member(rank=rank, address=address, token=self.hub.token, **options) for rank in (1, 2)
        ]
        self.threads = [self.hub, *self.members]
        for thread in self.threads:
            thread.start()

    def _conclude(self, verdict: Verdict, rank: int, is_taken_over: threading.Event) -> None:
        self.verdicts.put((rank, verdict))

    def told(self, count: int) -> dict[int, Verdict]:
        return dict(self.verdicts.get(timeout=20) for _ in range(count))

    def wait_until_met(self) -> None:
        while len(self.hub._members()) < 2:
            time.sleep(0.01)


@pytest.fixture
def job() -> Iterator[Job]:
    job = Job(timeout_s=60.0)
    job.wait_until_met()
    yield job
    for thread in reversed(job.threads):
        if thread.is_alive():
            thread.say_goodbye(wait_s=5)
    assert not any(thread.is_alive() for thread in job.threads)


def test_ranks_that_finish_leave_in_peace(job: Job) -> None:
    job.members[0].say_goodbye(wait_s=5)
    job.hub.say_goodbye(wait_s=5)
    job.members[1].join(5)
    assert not any(thread.is_alive() for thread in job.threads)
    assert job.verdicts.empty()


@pytest.mark.parametrize("failing", [0, 1])
def test_a_failure_is_told_to_all_others(job: Job, failing: int) -> None:
    job.threads[failing].tell(f"rank {failing}: ValueError: no", wait_s=5)
    told = job.told(2)
    assert sorted(told) == sorted({0, 1, 2} - {failing})
    assert set(told.values()) == {Verdict("failed", (failing,), f"rank {failing}: ValueError: no")}
    assert job.threads[2].wait_for_verdict(5) == told[2]


def test_a_lost_connection_is_the_end_of_a_process(job: Job) -> None:
    job.members[0]._lines.connection.shutdown(socket.SHUT_RDWR)
    told = job.told(3)  # the one that lost it thinks the same of the first rank
    assert (
        told[2].message
        == "rank 1: its process ended without a word (killed?), last seen in start, before any exchange"
    )
    assert told[0] == told[2]
    assert told[1].message.startswith("rank 0: its process ended")


def test_strangers_are_refused(job: Job) -> None:
    for words in (
        b'{"rank": 1, "token": "guess"}\n',
        b'{"rank": 1, "token": "gu\\u00e9ss\\ud800"}\n',
        b'{"rank": "1", "token": 7}\n',
        b"GET / HTTP/1.1\r\n\r\n",
        b"[" * 30000 + b"\n",
        b"7\n",
        b"x" * 2**17,
    ):
        with socket.create_connection(("127.0.0.1", job.hub.port), timeout=10) as stranger:
            with pytest.MonkeyPatch.context():
                try:
                    stranger.sendall(words)
                    assert stranger.recv(10) == b""
                except ConnectionError:
                    pass
    assert job.hub.is_alive()
    assert all(member.is_alive() for member in job.members)
    assert job.verdicts.empty()


def test_a_rank_that_only_greets_is_silent() -> None:
    """As one that is stopped right after."""
    verdicts: Verdicts = queue.Queue()
    hub = Hub(
        num_ranks=2,
        is_one_host=True,
        timeout_s=1.0,
        slow_timeout_s=1000.0,
        conclude=lambda *words: verdicts.put(words),
    )
    hub.start()
    with socket.create_connection(("127.0.0.1", hub.port)) as member:
        member.sendall(json.dumps({"rank": 1, "token": hub.token}).encode() + b"\n")
        verdict, _, _ = verdicts.get(timeout=20)
    assert (verdict.kind, verdict.ranks) == ("hung", (1,))
    assert verdict.message.startswith("rank 1 hangs: no sign of life for ")
    hub.join(5)


def test_a_first_rank_that_says_nothing_hangs() -> None:
    """Seen by a member; the hub's thread does not run at all here."""
    verdicts: Verdicts = queue.Queue()
    with socket.create_server(("127.0.0.1", 0)) as server:
        member = Member(
            rank=1,
            num_ranks=2,
            address=server.getsockname(),
            token="",
            timeout_s=1.0,
            slow_timeout_s=1.0,
            conclude=lambda *words: verdicts.put(words),
        )
        member.start()
        connection, _ = server.accept()
        with connection, connection.makefile() as lines:
            assert json.loads(lines.readline()) == {"rank": 1, "token": ""}
            verdict, rank, _ = verdicts.get(timeout=20)
    assert (verdict.kind, verdict.ranks, rank) == ("hung", (0,), 1)
    assert verdict.message.startswith("rank 0 hangs: no sign of life for ")
    member.join(5)


def test_one_rank_is_not_watched() -> None:
    rank_watch.start_watch(timeout_s=1.0, slow_timeout_s=1.0)
    assert rank_watch._thread is None
    assert rank_watch.told_failure() == ""
    rank_watch.tell_failure("nobody hears")
    rank_watch.stop_watch()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout_s": 0}, "timeout_s is 0; allowed: a number of seconds from 1 on. To watch nothing set"),
        ({"timeout_s": -5.0}, "timeout_s is -5.0"),
        ({"timeout_s": float("inf")}, "timeout_s is inf"),
        ({"timeout_s": "120"}, "timeout_s is '120'"),
        ({"timeout_s": True}, "timeout_s is True"),
        ({"slow_timeout_s": None}, "slow_timeout_s is None"),
        ({"timeout_s": 7200}, r"slow_timeout_s=1800.0 is below timeout_s=7200. Raise it"),
    ],
)
def test_bad_seconds_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RankWatchHook(**options)


def test_the_defaults_are_documented_numbers() -> None:
    hook = RankWatchHook()
    assert (hook.timeout_s, hook.slow_timeout_s) == (120.0, 1800.0)
    assert rank_watch.HUNG == exit_codes.HUNG
    assert default_hooks.default_hooks({})[0]["type"] is RankWatchHook
    assert len(default_hooks.default_hooks({"rank_watch": None})) == len(default_hooks.default_hooks({})) - 1

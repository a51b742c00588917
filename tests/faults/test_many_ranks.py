"""F6, F10 and F11 with real processes: a rank of two that hangs or is killed, and what must not be taken for that."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from perception.checkpoint import load_checkpoint
from perception.engine import read_log

REPOSITORY = Path(__file__).resolve().parents[2]
DRIVER = Path(__file__).with_name("many_ranks_driver.py")
MARK = "PERCEPTION_TEST_JOB"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
HUNG = 5
DEADLINE = 300.0


class Job:
    """Two ranks, each started by itself as a launcher without an agent would, or both by torchrun."""

    def __init__(
        self,
        folder: Path,
        plan: str,
        watch: str = "{}",
        *,
        launcher: list[str] | None = None,
        ranks: tuple[int, ...] = (0, 1),
    ) -> None:
        self.run = folder / "run"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        words = [sys.executable, *(launcher or []), str(DRIVER), str(self.run), plan, watch]
        if launcher and launcher[0] == "bash":
            words = [*launcher, "--work-dir", str(self.run)]
        self.processes = [self._start(rank, port, words) for rank in ((0,) if launcher else ranks)]

    def _start(self, rank: int, port: int, words: list[str]) -> subprocess.Popen:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        env = {**os.environ, "PATH": path, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
               "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
               MARK: str(self.run), "PYTHONPATH": os.pathsep.join(sys.path)}  # fmt: skip
        with open(f"{self.run}.out{rank}", "wb") as out:
            return subprocess.Popen(words, env=env, cwd=REPOSITORY, stdout=out, stderr=subprocess.STDOUT)

    def wait(self, rank: int = 0) -> tuple[int, float]:
        """Exit code, and seconds since the deed."""
        code = self.processes[rank].wait(timeout=DEADLINE)
        done = [float(path.read_text()) for path in self.run.parent.glob("run.deed*")]
        return code, time.time() - max(done, default=time.time())

    def output(self, rank: int = 0) -> str:
        return Path(f"{self.run}.out{rank}").read_text()

    def left(self) -> list[int]:
        """Processes of this job that still run, loader workers among them."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if f"{MARK}={self.run}\0".encode() in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
            except OSError:  # another user's, or gone
                continue
        return found

    def process_of(self, rank: int) -> int:
        """Of a job without loader workers."""
        (pid,) = (pid for pid in self.left() if f"\0RANK={rank}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes()
                  and b"torch.distributed.run" not in Path(f"/proc/{pid}/cmdline").read_bytes())  # fmt: skip
        return pid

    def assert_nothing_is_left(self) -> None:
        until = time.monotonic() + 20
        while (left := self.left()) and time.monotonic() < until:
            time.sleep(0.2)
        assert not left

    def close(self) -> None:
        for pid in self.left():
            os.kill(pid, signal.SIGKILL)
        for process in self.processes:
            process.wait(timeout=20)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    jobs: list[Job] = []

    def begin(*words: str, **options: Any) -> Job:
        jobs.append(Job(tmp_path, *words, **options))
        return jobs[-1]

    yield begin
    for job in jobs:
        job.close()


@pytest.mark.slow
def test_a_stopped_rank_is_named(start: Callable[..., Job]) -> None:
    """F11: with the last exchange and step, within the timeout; the stopped one follows when it runs again."""
    job = start('{"1": [6, "SIGSTOP"]}', '{"timeout_s": 6, "slow_timeout_s": 60}')
    code, _ = job.wait(0)
    assert code == HUNG, job.output()
    (message,) = (line for line in job.output().splitlines() if line.startswith("perception: error:"))
    assert message.startswith("perception: error: rank 0: rank 1 hangs: no sign of life for ")
    # Signs of life come at intervals; the last one may be older than these short steps.
    assert re.search(r"; last seen in (start|(the wait for )?step \d)", message)
    assert "rank 0 was last seen in step 6, in exchange " in message
    assert "('losses and target counts')" in message
    assert message.partition(": rank 0: ")[2] in next((job.run / "logs").glob("*.log")).read_text()
    os.kill(job.processes[1].pid, signal.SIGCONT)
    assert job.wait(1)[0] == HUNG, job.output(1)
    job.assert_nothing_is_left()


def test_a_killed_rank_ends_the_other_in_the_middle_of_its_work(start: Callable[..., Job]) -> None:
    """F11: within 10 s and by name, though nobody stops it and it waits for nothing."""
    job = start('{"1": [5, "SIGKILL"], "0": [5, "sleep 100"]}')
    code, seconds = job.wait(0)
    assert code == 1, job.output()
    assert seconds < 10
    (message,) = (line for line in job.output().splitlines() if line.startswith("perception: error:"))
    expected = "rank 0: this rank stops, because another one failed: rank 1: its process ended without a word (killed?)"
    assert message.startswith(f"perception: error: {expected}, last seen in ")
    job.assert_nothing_is_left()


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_rank_ends_the_other_in_an_exchange(start: Callable[..., Job], killed: int) -> None:
    """Also the first one, which keeps the store and the watch."""
    job = start(f'{{"{killed}": [5, "SIGKILL"]}}')
    code, seconds = job.wait(1 - killed)
    assert code == 1, job.output(1 - killed)
    assert seconds < 10
    messages = [line for line in job.output(1 - killed).splitlines() if line.startswith("perception: error:")]
    assert len(messages) == 1
    assert f"another one failed: rank {killed}: its process ended without a word" in messages[0]
    job.assert_nothing_is_left()


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_rank_ends_the_job_under_torchrun(start: Callable[..., Job], killed: int) -> None:
    job = start(f'{{"{killed}": [5, "SIGKILL"], "{1 - killed}": [5, "sleep 100"]}}', launcher=TORCHRUN)
    code, seconds = job.wait()
    assert code != 0
    assert seconds < 10
    assert "exitcode  : -9" in job.output()
    assert f"rank      : {killed} (local_rank: {killed})" in job.output()
    job.assert_nothing_is_left()


@pytest.mark.slow
def test_a_killed_rank_ends_the_shipped_launcher(start: Callable[..., Job], nano_options: list[str]) -> None:
    """`tools/dist_train.sh` on the nano model, killed from outside in the middle of its training."""
    options = [*nano_options, "train_dataloader.batch_size=1", "train_cfg.max_epochs=200"]
    job = start("", launcher=["bash", "tools/dist_train.sh", "bevformer_nano", "2", "--set", *options])
    until = time.monotonic() + DEADLINE
    log = job.run / "log.jsonl"
    while not (log.exists() and any(line["kind"] == "train" for line in read_log(log))):
        assert time.monotonic() < until, job.output()
        assert job.processes[0].poll() is None, job.output()
        time.sleep(0.5)
    os.kill(job.process_of(1), signal.SIGKILL)
    killed = time.monotonic()
    assert job.processes[0].wait(timeout=DEADLINE) != 0
    assert time.monotonic() - killed < 10
    assert "rank      : 1 (local_rank: 1)" in job.output()
    job.assert_nothing_is_left()


@pytest.mark.slow
def test_a_rank_whose_training_thread_hangs_is_named_and_shows_where(start: Callable[..., Job]) -> None:
    job = start('{"1": [6, "sleep 1000"]}', '{"timeout_s": 6, "slow_timeout_s": 60}')
    for rank in (0, 1):
        assert job.wait(rank)[0] == HUNG, job.output(rank)
        assert f"rank {rank}: rank 1 hangs: not arrived at exchange " in job.output(rank)
    assert 'many_ranks_driver.py", line' in job.output(1)
    assert 'many_ranks_driver.py", line' not in job.output(0)
    job.assert_nothing_is_left()


@pytest.mark.slow
def test_a_stopped_first_rank_is_named_by_the_other(start: Callable[..., Job]) -> None:
    job = start('{"0": [6, "SIGSTOP"]}', '{"timeout_s": 6, "slow_timeout_s": 60}')
    code, seconds = job.wait(1)
    assert code == HUNG, job.output(1)
    assert seconds < 30
    assert "rank 1: rank 0 hangs: no sign of life for " in job.output(1)
    os.kill(job.processes[0].pid, signal.SIGCONT)
    assert job.wait(0)[0] != 0
    job.assert_nothing_is_left()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("deed", "reason"),
    [
        ("SIGSTOP", "no sign of life"),
        ("sleep 1000", r"not arrived at exchange 1 \('the first rank's weights'\)"),
    ],
)
def test_a_rank_that_hangs_while_it_builds_is_named(
    start: Callable[..., Job], deed: str, reason: str
) -> None:
    job = start(f'{{"build": [1, "{deed}"]}}', '{"timeout_s": 6, "slow_timeout_s": 8}')
    assert job.wait(0)[0] == HUNG, job.output()
    assert re.search(f"rank 0: rank 1 hangs: {reason} for .*; last seen in start, ", job.output())
    if deed == "SIGSTOP":
        os.kill(job.processes[1].pid, signal.SIGCONT)
    assert job.wait(1)[0] == HUNG, job.output(1)
    job.assert_nothing_is_left()


@pytest.mark.slow
@pytest.mark.parametrize("alone", [0, 1])
def test_a_rank_that_never_comes_is_missed(start: Callable[..., Job], alone: int) -> None:
    """Also the first one, where the ranks meet."""
    job = start('{"together": 4}', ranks=(alone,))
    assert job.processes[0].wait(timeout=DEADLINE) == 1
    (message,) = (line for line in job.output(alone).splitlines() if line.startswith("perception: error:"))
    expected = f"perception: error: rank {alone}: the 2 ranks did not come together at 127.0.0.1:"
    assert message.startswith(expected)
    assert "strategy.timeout_s (4) is how many seconds they wait" in message
    job.assert_nothing_is_left()


@pytest.mark.slow
def test_slow_parts_on_one_rank_are_no_hang(start: Callable[..., Job]) -> None:
    """A first step, a save and a scoring that each take longer than the timeout."""
    plan = '{"1": [1, "sleep 7"], "save": "sleep 7", "score": "sleep 7"}'
    job = start(plan, '{"timeout_s": 5, "slow_timeout_s": 100}')
    for rank in (0, 1):
        assert job.wait(rank)[0] == 0, job.output(rank)
    lines = read_log(job.run / "log.jsonl")
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 11))
    assert [line["step"] for line in lines if line["kind"] == "val"] == [8, 10]
    assert load_checkpoint(job.run).step == 10
    job.assert_nothing_is_left()


@pytest.mark.slow
def test_a_job_that_was_stopped_as_a_whole_goes_on(start: Callable[..., Job]) -> None:
    """As a queueing system suspends one: nobody was silent in time that nobody had."""
    job = start('{"0": [5, "sleep 2"]}', '{"timeout_s": 6, "slow_timeout_s": 60}')
    until = time.monotonic() + DEADLINE
    while not Path(f"{job.run}.deed0").exists() and time.monotonic() < until:
        time.sleep(0.05)
    for number, pause in ((signal.SIGSTOP, 10), (signal.SIGCONT, 0)):
        for process in job.processes:
            os.kill(process.pid, number)
        time.sleep(pause)
    for rank in (0, 1):
        assert job.wait(rank)[0] == 0, job.output(rank)
    job.assert_nothing_is_left()


@pytest.mark.slow
def test_sigterm_to_one_rank_saves_on_all_and_exits_143(start: Callable[..., Job]) -> None:
    """F6, as exit codes of real processes."""
    job = start('{"1": [5, "SIGTERM"]}')
    for rank in (0, 1):
        code, seconds = job.wait(rank)
        assert code == 143, job.output(rank)
        assert seconds < 30
    checkpoint = load_checkpoint(job.run)
    assert checkpoint.step == 5
    assert sorted(checkpoint.rng_states) == [0, 1]
    job.assert_nothing_is_left()

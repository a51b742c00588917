"""An error on one of two ranks ends both at once, and both say why."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from perception.cli.main import explain
from perception.engine import RankFailure, rank_failure

REPOSITORY = Path(__file__).resolve().parents[2]


def test_one_rank_s_data_error_ends_both(tmp_path: Path) -> None:
    run = tmp_path / "run"
    driver = Path(__file__).with_name("failing_rank_driver.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(driver), str(run)],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=170,
    )
    waited = time.time() - float(Path(f"{run}.failed").read_text())
    assert done.returncode != 0
    assert waited < 120, (
        f"the other rank ended {waited:.0f} s after the failure"
    )  # the group's timeout is 1800 s
    errors = [line for line in done.stderr.splitlines() if line.startswith("perception: error:")]
    told = [line for line in errors if "this rank stops, because another one failed" in line]
    (failed,) = (line for line in errors if line not in told)
    assert failed.endswith("the sample is marked [sample sample4]")
    number = int(failed.removeprefix("perception: error: rank ")[0])
    expected = (
        f"perception: error: rank {1 - number}: this rank stops, because another one failed: rank {number}: "
    )
    # torchrun may stop the other rank before that has told why it leaves.
    assert told == [f"{expected}DataError: the sample is marked [sample sample4]"] or (
        not told and "Signal 15 (SIGTERM)" in done.stderr
    )
    assert "perception/engine" not in done.stderr.partition("ChildFailedError")[0], "a traceback was shown"


class Store:
    """The process group's store, or one whose host has ended."""

    def __init__(self, *, is_lost: bool = False) -> None:
        self.is_lost, self.content = is_lost, {}

    def check(self, keys: list[str]) -> bool:
        if self.is_lost:
            raise dist.DistNetworkError("recv failed")
        return all(key in self.content for key in keys)

    def get(self, key: str) -> bytes:
        return self.content[key].encode()

    def compare_set(self, key: str, expected: str, value: str) -> None:
        self.check([key])
        self.content.setdefault(key, value)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    store = Store()
    monkeypatch.setattr(rank_failure, "world_size", lambda: 2)
    monkeypatch.setattr(rank_failure, "rank", lambda: 1)
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: store)
    return store


def test_the_first_failure_is_kept_and_told(store: Store) -> None:
    with pytest.raises(KeyError), rank_failure.fail_together():
        raise KeyError("first")
    with pytest.raises(ValueError, match="own"), rank_failure.fail_together():
        raise ValueError("own errors of this rank stay what they are")
    with pytest.raises(RankFailure, match=r"another one failed: rank 1: KeyError: 'first'") as caught:
        with rank_failure.fail_together():
            raise RuntimeError("Connection closed by peer")
    assert explain(caught.value) == (1, str(caught.value))


def test_without_word_the_lost_connection_is_told(store: Store) -> None:
    store.is_lost = True
    with pytest.raises(dist.DistNetworkError, match="reset"), rank_failure.fail_together():
        raise dist.DistNetworkError("Connection reset by peer")


def test_one_rank_alone_is_left_alone() -> None:
    with pytest.raises(RuntimeError, match="mine"), rank_failure.fail_together():
        raise RuntimeError("mine")

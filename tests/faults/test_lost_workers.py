"""F10: a loader worker that is killed, in training and in evaluation."""

import multiprocessing
import os
import re
import signal
from pathlib import Path

import pytest
import toy_world
from torch.utils.data import DataLoader

from perception.engine import PerceptionRunner, lost_workers
from perception.engine.data_loading import build_dataloader
from perception.engine.lost_workers import name_lost_samples
from perception.utils import DataError

# torch raises its error in a signal handler, which may run in a destructor; then the next look at the workers tells.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class DeadlyDataset(toy_world.ToyDataset):
    """Kills the process that reads sample 4."""

    def __getitem__(self, index: int) -> dict:
        if index == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


class DeadlyTokens(DeadlyDataset):
    """The same with tokens, as our data sets have them."""

    @property
    def sample_tokens(self) -> list[str]:
        return [f"token{index}" for index in range(len(self))]


@pytest.mark.parametrize(
    ("loader", "is_persistent"), [("train", False), ("train", True), ("val", False)], ids=str
)
def test_the_sample_is_named(tmp_path: Path, loader: str, is_persistent: bool) -> None:
    changes = {
        f"{loader}_dataloader__dataset": {"type": DeadlyTokens},
        f"{loader}_dataloader__num_workers": 2,
        f"{loader}_dataloader__persistent_workers": is_persistent,
    }
    runner = PerceptionRunner.from_cfg(toy_world.config(tmp_path, **changes))
    # torch notices it by the signal that its end sends, or by the connection that breaks.
    expected = (
        r"process \d+\) (is killed by signal: Killed|exited unexpectedly); .*lower num_workers .*"
        r"\[sample token4\]$"
    )
    with pytest.raises(DataError, match=expected) as caught:
        runner.train()
    assert caught.value.sample_token == "token4"
    assert not multiprocessing.active_children()


def test_without_tokens_the_number_is_told() -> None:
    dataset = DeadlyDataset(num_samples=6)
    loader = build_dataloader(dict(dataset=dataset, num_workers=1, collate_fn=dict(type=list)), seed=0)
    with pytest.raises(DataError, match=r"\[sample number 4\]"), name_lost_samples(loader):
        list(loader)


def test_several_workers_are_told() -> None:
    loader = build_dataloader(dict(dataset=DeadlyTokens(num_samples=6), num_workers=2), seed=0)
    for worker, (process, index) in enumerate(((11, 3), (13, 1))):
        loader.dataset.reading[worker, 0], loader.dataset.reading[worker, 1] = process, index
    message = "DataLoader worker (pid(s) 11, 13) exited unexpectedly"
    with pytest.raises(DataError, match=r"\[sample token3, token1\]") as caught, name_lost_samples(loader):
        raise RuntimeError(message)
    assert "a loader worker (process 11, 13) exited unexpectedly; it read" in str(caught.value)


@pytest.mark.parametrize("error", [ConnectionResetError, EOFError, FileNotFoundError])
def test_a_broken_connection_waits_for_its_reason(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """Of a worker whose death is known a moment later, or of something else."""
    monkeypatch.setattr(lost_workers, "_NOTICE_S", 0.2)
    loader = build_dataloader(dict(dataset=DeadlyTokens(num_samples=6), num_workers=1), seed=0)
    with pytest.raises(error), name_lost_samples(loader):
        raise error
    loader.dataset.reading[0, 0], loader.dataset.reading[0, 1] = 11, 3

    def notice(number: int, frame: object) -> None:
        raise RuntimeError("DataLoader worker (pid 11) is killed by signal: Killed. ")

    monkeypatch.setattr(lost_workers, "_NOTICE_S", 20.0)
    before = signal.signal(signal.SIGALRM, notice)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(DataError, match=r"\[sample token3\]"), name_lost_samples(loader):
            raise error
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    "message", ["DataLoader worker (pid 1) is killed by signal: Killed. ", "no worker at all"]
)
def test_other_errors_stay(message: str) -> None:
    mine = build_dataloader(dict(dataset=[1], num_workers=1), seed=0)
    for loader in (mine, DataLoader([1])):
        with pytest.raises(RuntimeError, match=re.escape(message)) as caught, name_lost_samples(loader):
            raise RuntimeError(message)
        assert type(caught.value) is RuntimeError

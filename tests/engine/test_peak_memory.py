"""The peak is that of a stretch, not of the process's life."""

import mmap
import os

import pytest
import torch

from perception.engine import peak_memory
from perception.engine.peak_memory import PeakMemory

CPU = torch.device("cpu")


def hold(mib: int) -> None:
    # Not by malloc: earlier runs in this process may have told it to keep what is freed.
    with mmap.mmap(-1, mib * 2**20) as block:
        for page in range(0, len(block), mmap.PAGESIZE):
            block[page] = 1


@pytest.mark.skipif(
    not os.access(peak_memory._RESET, os.W_OK), reason="the system keeps no peak that can be reset"
)
def test_what_is_freed_before_the_end_counts() -> None:
    memory = PeakMemory(CPU)
    memory.restart()
    hold(200)
    found = memory.describe()
    assert 190 < found["growth_mib"] < 300
    assert found["peak_mib"] > found["growth_mib"]
    assert found["of"] == "resident memory of this process, without loader workers"
    memory.restart()
    assert memory.describe()["growth_mib"] < 100


def test_a_peak_that_cannot_be_reset_is_the_processs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike
) -> None:
    monkeypatch.setattr(peak_memory, "_RESET", peak_memory.Path(tmp_path) / "no" / "file")
    hold(200)
    memory = PeakMemory(CPU)
    memory.restart()
    assert "since it began" in memory.describe()["of"]
    assert memory.describe()["growth_mib"] >= 0

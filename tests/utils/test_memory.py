"""Freed memory is used again; measured in processes of their own, as the setting is the process's."""

import subprocess
import sys

import pytest

from perception.utils import keep_freed_memory

SCRIPT = """
import resource, sys
import numpy as np
from perception.utils import keep_freed_memory
kept = sys.argv[1] == "keep" and keep_freed_memory()
for _ in range(3):
    np.ones(1 << 23)  # 64 MiB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    np.ones(1 << 23)
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(word: str) -> tuple[int, int]:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, word], capture_output=True, text=True, check=True, timeout=120
    )
    kept, faults = map(int, run.stdout.split())
    return kept, faults


def test_large_blocks_are_not_asked_for_again():
    if not keep_freed_memory():
        pytest.skip("the C library is not glibc")
    kept, faults = page_faults("keep")
    assert kept
    assert faults < 0.1 * page_faults("default")[1]


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    assert keep_freed_memory() is False

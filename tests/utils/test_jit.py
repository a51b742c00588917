"""Compiled loops shared out among threads."""

import os
import signal

import numba
import numpy as np
import pytest
import torch

from perception.utils.jit import parallel_kernel


@parallel_kernel
def _fill_squares(out: np.ndarray) -> None:
    for number in numba.prange(out.shape[0]):
        out[number] = number * number


@pytest.fixture(autouse=True)
def _restored_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _squares() -> np.ndarray:
    out = np.zeros(1000)
    _fill_squares(out)
    return out


@pytest.mark.parametrize("num_threads", [1, 2, 1000])
def test_loop_is_whole_for_any_number_of_threads(num_threads: int):
    torch.set_num_threads(num_threads)
    np.testing.assert_array_equal(_squares(), np.arange(1000.0) ** 2)
    assert torch.get_num_threads() == num_threads


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # Python 3.12's, of fork itself.
def test_forked_child_of_a_threaded_parent_computes_alone():
    torch.set_num_threads(2)
    _squares()
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # A child that waits for threads that it has not got must not outlive the test.
        os._exit(0 if np.array_equal(_squares(), np.arange(1000.0) ** 2) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

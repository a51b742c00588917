"""Every method's updates on two and four ranks against one rank on the joined batch."""

import functools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.engine import rank_methods
from tests.engine.launching import launch

pytestmark = (
    pytest.mark.slow
)  # `test_two_ranks` has some of the methods, `test_zero_methods` all of them with ZeRO

# Of the way that the weights went: after one step, after ten.
TOLERANCES = {"float64": (1e-10, 1e-10), "float32": (5e-6, 1e-4), "bf16": (3e-2, 3e-2)}
CASES = [(ranks, precision) for ranks in (2, 4) for precision in TOLERANCES]
KINDS = {
    "exact": rank_methods.METHODS,
    "sketch": rank_methods.COMPARING,
    "local": rank_methods.TELLING,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("methods")


@functools.cache
def on_one_rank(method: str, precision: str) -> Tensor:
    return rank_methods.weights_after(method, precision)


def distances(folder: Path, num_ranks: int, way: str, precision: str, method: str) -> tuple[float, float]:
    """After one step and after all: how far off the weights are, as a share of how far they went.

    One launch runs all methods of a kind.
    """
    file = folder / f"{num_ranks}-{way}-{precision}.pt"
    if not file.is_file():
        names = list(KINDS[way])
        job = {"job": "methods", "names": names, "precision": precision, "way": way, "out": str(file)}
        launch([job], num_ranks=num_ranks, limit_s=500)
    found = torch.load(file, weights_only=True)[method]
    expected = on_one_rank(method, precision)
    assert torch.equal(found[0], expected[0])
    first, last = ((found[n] - expected[n]).norm() / (expected[n] - expected[0]).norm() for n in (1, 2))
    return float(first), float(last)


@pytest.mark.parametrize(("num_ranks", "precision"), CASES)
@pytest.mark.parametrize("method", rank_methods.METHODS)
def test_updates_are_those_of_the_joined_batch(
    folder: Path, num_ranks: int, precision: str, method: str
) -> None:
    first, last = distances(folder, num_ranks, "exact", precision, method)
    assert first <= TOLERANCES[precision][0]
    assert last <= TOLERANCES[precision][1]


@pytest.mark.parametrize("num_ranks", [2, 4])
@pytest.mark.parametrize("method", rank_methods.COMPARING)
def test_sketches_of_ranks_add_up(folder: Path, num_ranks: int, method: str) -> None:
    assert distances(folder, num_ranks, "sketch", "float64", method)[1] <= 1e-10


@pytest.mark.parametrize("method", rank_methods.TELLING)
def test_conflicts_of_local_gradients_are_far_off(folder: Path, method: str) -> None:
    """Else the tests above could not tell."""
    assert distances(folder, 2, "local", "float64", method)[1] > 1e-2

"""Every method's updates on two and four ranks against one rank on the joined batch."""

import functools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.engine import rank_methods
from tests.engine.launching import launch

# Of the way that the weights went: after one step, after ten.
TOLERANCES = {"float64": (1e-10, 1e-10), "float32": (5e-6, 1e-4), "bf16": (3e-2, 3e-2)}


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the weights of all methods, by way and precision."""
    folder = tmp_path_factory.mktemp("methods")
    ways = [("exact", precision) for precision in TOLERANCES] + [("sketch", "float64"), ("local", "float64")]
    jobs = [
        {"job": "methods", "precision": precision, "way": way, "out": f"{folder}/{way}-{precision}"}
        for way, precision in ways
    ]
    launch(jobs, num_ranks=request.param)
    return folder


@functools.cache
def on_one_rank(method: str, precision: str) -> Tensor:
    return rank_methods.weights_after(method, precision)


def distances(folder: Path, way: str, precision: str, method: str) -> tuple[float, float]:
    """After one step and after all: how far off the weights are, as a share of how far they went."""
    found = torch.load(folder / f"{way}-{precision}", weights_only=True)[method]
    expected = on_one_rank(method, precision)
    assert torch.equal(found[0], expected[0])
    first, last = ((found[n] - expected[n]).norm() / (expected[n] - expected[0]).norm() for n in (1, 2))
    return float(first), float(last)


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("method", rank_methods.METHODS)
def test_updates_are_those_of_the_joined_batch(ranks: Path, method: str, precision: str) -> None:
    first, last = distances(ranks, "exact", precision, method)
    assert first <= TOLERANCES[precision][0]
    assert last <= TOLERANCES[precision][1]


@pytest.mark.parametrize("method", rank_methods.COMPARING)
def test_sketches_of_ranks_add_up(ranks: Path, method: str) -> None:
    assert distances(ranks, "sketch", "float64", method)[1] <= 1e-10


def test_conflicts_of_local_gradients_are_far_off(ranks: Path) -> None:
    """Else the tests above could not tell."""
    off = {
        method: distances(ranks, "local", "float64", method)[1]
        for method in ("pcgrad", "mgda", "wpcgrad-seg-vel")
    }
    assert min(off.values()) > 1e-2, off

"""Properties that all Gram methods share, on inputs that hypothesis chooses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perception.balancing import (
    LinearPacing,
    MCLGSWeighting,
    NashWeighting,
    PCGradWeighting,
    UniformPriority,
    WPCGradWeighting,
)
from perception.balancing.gradvac import VaccineWeighting
from perception.balancing.torchjd_weighting import (
    aligned_mtl,
    cagrad,
    dualproj,
    fairgrad,
    imtl_g,
    mgda,
    upgrad,
)
from tests.balancing import cases

METHODS = {
    "wpcgrad": lambda: WPCGradWeighting(UniformPriority()),
    "wpcgrad anchor": lambda: WPCGradWeighting(UniformPriority(), mode="anchor"),
    "mclgs": lambda: MCLGSWeighting(LinearPacing(40, 0)),
    "nash": lambda: NashWeighting(max_norm=None),
    "pcgrad": PCGradWeighting,
    "gradvac": VaccineWeighting,
    "mgda": mgda,
    "cagrad": cagrad,
    "aligned_mtl": aligned_mtl,
    "imtl_g": imtl_g,
    "fairgrad": fairgrad,
    "upgrad": upgrad,
    "dualproj": dualproj,
}
# Coefficients behave like G^-degree; those of the bargaining methods shrink as gradients grow.
DEGREE = {"nash": 0.5, "fairgrad": 0.5}
RANDOM = ("wpcgrad", "wpcgrad anchor", "pcgrad", "gradvac")
FEW = settings(max_examples=12, deadline=None, derandomize=True)


def solve(name, gram, seed=0):
    return cases.seeded(METHODS[name](), seed)(gram)


@pytest.mark.parametrize("name", METHODS)
@FEW
@given(seed=st.integers(0, 10**6), num_tasks=st.integers(1, 6), rank=st.integers(1, 6))
def test_finite_at_any_rank_and_scale(name, seed, num_tasks, rank):
    matrix = cases.draw(seed, num_tasks=num_tasks, rank=min(rank, num_tasks), low=-10, high=10)
    gram = matrix @ matrix.T
    kept = gram.clone()
    found = solve(name, gram)
    assert found.shape == (num_tasks,)
    assert found.dtype == gram.dtype
    assert bool(found.isfinite().all())
    assert torch.equal(gram, kept)
    if num_tasks == 1:
        assert found.tolist() == [1]


@pytest.mark.parametrize("name", METHODS)
@FEW
@given(seed=st.integers(0, 10**6), exponent=st.integers(-20, 20))
def test_a_common_scale_changes_nothing_but_a_factor(name, seed, exponent):
    matrix = cases.draw(seed, num_tasks=3, low=0, high=0)
    gram = matrix @ matrix.T
    expected = solve(name, gram) * (10.0**exponent) ** -DEGREE.get(name, 0)
    assert torch.allclose(
        solve(name, gram * 10.0**exponent), expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max())
    )


@pytest.mark.parametrize("name", [name for name in METHODS if name not in RANDOM])
@FEW
@given(seed=st.integers(0, 10**6), order=st.permutations(range(4)))
def test_the_order_of_tasks_does_not_matter(name, seed, order):
    matrix = cases.draw(seed, num_tasks=4, low=0, high=0)
    gram = matrix @ matrix.T
    found = solve(name, gram[order][:, order])
    # MGDA's iteration and the solvers stop at a tolerance.
    assert torch.allclose(found, solve(name, gram)[order], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["wpcgrad", "wpcgrad anchor", "pcgrad", "gradvac", "upgrad"])
def test_tasks_without_conflict_are_left_as_they_are(name):
    gram = torch.tensor([[2.0, 0.5, 0.1], [0.5, 1.0, 0.2], [0.1, 0.2, 3.0]], dtype=torch.float64)
    expected = torch.full((3,), 1 / 3 if name == "upgrad" else 1.0, dtype=torch.float64)
    assert torch.allclose(solve(name, gram), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", METHODS)
def test_the_result_has_the_inputs_type(name, dtype):
    assert solve(name, torch.eye(2, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("shape", [(2, 3), (2,), (0, 0)])
def test_only_square_matrices_are_taken(shape):
    with pytest.raises(ValueError, match="a Gram matrix is square"):
        METHODS["wpcgrad"]()(torch.zeros(shape))


def test_gradvac_bears_tasks_that_have_always_been_parallel():
    method = cases.seeded(VaccineWeighting(), 0)
    for _ in range(60):
        method(torch.ones(2, 2, dtype=torch.float64))
    found = method(torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=torch.float64))
    assert bool(found.isfinite().all())
    assert float(found.max()) < 1e4

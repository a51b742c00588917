"""Pacing functions and MCLGS's special cases."""

import pytest
import torch

from perception.balancing import ExponentialPacing, LinearPacing, MCLGSWeighting, RatioPacing


def test_the_papers_numbers():
    # Table 1's best row on NYUv2: 40 / (200 epochs * 398 steps) is the 5e-4 of the text.
    assert LinearPacing.from_ratio(40, 1, 200 * 398).decrement == pytest.approx(5.03e-4, rel=1e-3)
    assert LinearPacing(40, 3e-4)(10**6) == 0
    assert ExponentialPacing(40, 0.9)(3) == pytest.approx(40 * 0.729)
    assert RatioPacing(40, 2, total_steps=10)(10) == 20


def test_two_tasks_only_change_the_step_size():
    gram = torch.tensor([[4.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    found = MCLGSWeighting(LinearPacing(2, 0))(gram)
    assert found[0] == found[1] == pytest.approx(float(torch.tanh(torch.tensor(-1.0)) + 1) / 2)


def test_steps_are_optimiser_steps():
    method = MCLGSWeighting(LinearPacing(40, 10))
    gram = torch.tensor([[4.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    before = method(gram)
    assert torch.equal(before, method(gram))
    for _ in range(4):
        method.end_step()
    assert method(gram).tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearPacing(-1, 0), "initial is -1"),
        (lambda: LinearPacing(1, -0.1), "decrement is -0.1"),
        (lambda: LinearPacing.from_ratio(40, 0, 10), "ratio is 0"),
        (lambda: LinearPacing.from_ratio(40, 1, 0), "total_steps is 0"),
        (lambda: ExponentialPacing(40, 1.1), "rate is 1.1"),
        (lambda: RatioPacing(40, -1), "ratio is -1"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_pacing_must_be_callable():
    with pytest.raises(TypeError, match="it must be callable"):
        MCLGSWeighting(40)

"""Strengths of channels: the equations, and the claims by which they are extended, measured."""

import pytest
import torch
from torch import nn

from perception.balancing.channel_strength import (
    NO_TASK,
    input_gain,
    layer_strength,
    norm_gain,
    squared_weights,
    top_tasks,
)

ALL = torch.tensor([True, True])


def test_equation_4_with_loops() -> None:
    weight = torch.randn(3, 2, 3, 5, dtype=torch.float64)
    expected = [[sum(float(w) ** 2 for w in weight[p, q].flatten()) / 15 for q in range(2)] for p in range(3)]
    torch.testing.assert_close(squared_weights(weight), torch.tensor(expected, dtype=torch.float64))
    assert torch.equal(squared_weights(weight[:, :, 0, 0]), weight[:, :, 0, 0].square())


def test_equation_6_of_a_batch_norm() -> None:
    norm = nn.BatchNorm2d(2, eps=0.5)
    norm.weight.data.copy_(torch.tensor([2.0, -3.0]))
    norm.running_var.copy_(torch.tensor([0.5, 4.0]))
    assert norm_gain(norm).tolist() == [4.0, 2.0]


def test_a_batch_norms_gain_is_its_squared_derivative() -> None:
    norm = nn.BatchNorm1d(4).double().eval()
    norm.weight.data.normal_()
    norm.running_var.uniform_(0.5, 2)
    jacobian = torch.autograd.functional.jacobian(
        lambda x: norm(x[None])[0], torch.randn(4, dtype=torch.float64)
    )
    torch.testing.assert_close(jacobian.diagonal().square(), norm_gain(norm))


def test_a_layer_norms_gain_is_its_mean_squared_derivative_up_to_a_common_factor() -> None:
    torch.manual_seed(0)
    channels, norm = 64, nn.LayerNorm(64).double()
    norm.weight.data.uniform_(0.5, 2)
    derivative = torch.zeros(channels, dtype=torch.float64)
    for _ in range(300):
        token = torch.randn(channels, dtype=torch.float64) * 3 + 1
        derivative += torch.autograd.functional.jacobian(norm, token).diagonal().square() / 300
    ratio = derivative / norm_gain(norm)
    assert float(ratio.std() / ratio.mean()) < 0.01


def test_a_layers_share_is_its_share_of_the_normalised_output() -> None:
    """S_p is what channel p contributes to the mean square of z, for inputs that are white."""
    torch.manual_seed(0)
    weight, gain = torch.randn(5, 7, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    x = torch.randn(200_000, 7, dtype=torch.float64)
    share = ((x @ weight.T) * gain.sqrt()).square().mean(dim=0)
    torch.testing.assert_close(
        layer_strength(gain[:, None], weight)[:, 0], share / share.sum(), rtol=0.02, atol=0
    )


def test_a_chain_through_a_relu_is_what_the_hidden_channel_contributes() -> None:
    """The share of hidden channel q in Σ_p gain_p ⟨z_p²⟩, measured by leaving out the others."""
    torch.manual_seed(0)
    first, second = torch.randn(6, 8, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    gain = torch.rand(4, dtype=torch.float64)
    hidden = (torch.randn(200_000, 8, dtype=torch.float64) @ first.T).relu()  # (N, 6)
    alone = hidden.square().mean(dim=0) * (second.square() * gain[:, None]).sum(dim=0)
    strength = layer_strength(input_gain(gain, second)[:, None], first)[:, 0]
    torch.testing.assert_close(strength, alone / alone.sum(), rtol=0.02, atol=0)


def test_attention_over_positions_keeps_the_channels_shares() -> None:
    """Averaging white values over positions scales every channel alike, within a head of one set of weights."""
    torch.manual_seed(0)
    values = torch.randn(20_000, 9, 4, dtype=torch.float64) * torch.tensor(
        [1.0, 2.0, 3.0, 4.0]
    )  # (N, position, C)
    weights = torch.rand(20_000, 9, 1, dtype=torch.float64).softmax(dim=1)
    before, after = (x.square().mean(dim=0) for x in (values[:, 0], (values * weights).sum(dim=1)))
    torch.testing.assert_close(after / after.sum(), before / before.sum(), rtol=0.03, atol=0)


def test_equation_7_sums_to_one_and_compares_tasks_of_any_scale() -> None:
    gain, weight = torch.rand(6, 2), torch.randn(6, 3)
    strength = layer_strength(gain, weight)
    torch.testing.assert_close(strength.sum(dim=0), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(layer_strength(gain * torch.tensor([1.0, 1e6]), weight), strength)


def test_a_layer_of_zeros_has_no_strength_and_no_top_task() -> None:
    strength = layer_strength(torch.ones(3, 2), torch.zeros(3, 4))
    assert strength.tolist() == [[0, 0]] * 3
    assert top_tasks(strength, ALL).tolist() == [NO_TASK] * 3


def test_equation_10_and_ties() -> None:
    strength = torch.tensor([[0.5, 0.2], [0.25, 0.25], [0.25, 0.55]])
    assert top_tasks(strength, ALL).tolist() == [0, NO_TASK, 1]
    assert top_tasks(strength.flip(1), ALL).tolist() == [1, NO_TASK, 0]


@pytest.mark.parametrize(
    ("present", "expected"),
    [([True, False], [0, 0, 0]), ([False, True], [1, 1, 1]), ([False, False], [-1] * 3)],
)
def test_absent_tasks_lead_nothing(present: list[bool], expected: list[int]) -> None:
    strength = torch.tensor([[0.5, 0.2], [0.25, 0.25], [0.25, 0.55]])
    assert top_tasks(strength, torch.tensor(present)).tolist() == expected

"""GradDrop by blocks: one sign per element, by its share, reproducible."""

import pytest
import torch

from tests.balancing import runs


def blocks_of(balancer, gradients, present):
    balancer.weigh(torch.ones(4), present)
    balancer.combine(torch.ones(4), present, None)
    return balancer.combine_block(gradients, present)


def test_signs_are_drawn_by_their_share():
    balancer = runs.built("graddrop")
    gradients = torch.tensor([3.0, -1.0, 0.0, 0.0]).reshape(4, 1, 1).expand(4, 50, 60).clone()
    found = blocks_of(balancer, gradients, torch.tensor([True, True, False, True]))
    assert found.shape == (50, 60)
    assert set(found.unique().tolist()) == {3.0, -1.0}
    assert float((found == 3.0).double().mean()) == pytest.approx(0.75, abs=0.03)


def test_without_a_conflict_it_is_the_sum():
    balancer = runs.built("graddrop")
    gradients = torch.rand(4, 7)
    assert torch.allclose(blocks_of(balancer, gradients, torch.ones(4, dtype=torch.bool)), gradients.sum(0))


def test_a_leak_passes_always_and_zero_gradients_give_zero():
    balancer = runs.built("graddrop", leak={"cls": 1.0, "box": 1.0, "velocity": 1.0, "seg": 1.0})
    gradients = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    everyone = torch.ones(4, dtype=torch.bool)
    assert torch.allclose(blocks_of(balancer, gradients, everyone), gradients.sum(0), atol=1e-6)
    assert not blocks_of(runs.built("graddrop"), torch.zeros(4, 9), everyone).any()


def test_loss_weights_and_the_mean():
    balancer = runs.built("graddrop", weighting="rlw", convention="mean")
    gradients = torch.rand(4, 5)
    present = torch.tensor([True, True, True, False])
    weights = balancer.weigh(torch.ones(4), present)
    assert weights.sum() == pytest.approx(1)
    balancer.combine(weights, present, None)
    found = balancer.combine_block(gradients * weights[:, None], present)
    assert torch.allclose(found, (gradients * weights[:, None])[:3].sum(0))


def test_bad_leaks():
    with pytest.raises(ValueError, match="leak of task 'seg' is 2"):
        runs.built("graddrop", leak={"seg": 2.0})
    with pytest.raises(ValueError, match="Did you mean 'seg'"):
        runs.built("graddrop", leak={"segg": 0.5})

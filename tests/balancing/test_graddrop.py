"""GradDrop by blocks: one sign per element, by its share, reproducible, the same for whole rows and for parts."""

import pytest
import torch
from torch import nn

from perception.balancing import TaskGradients, task_gradients
from tests.balancing import runs


def blocks_of(balancer, gradients, present, number=0):
    balancer.weigh(torch.ones(4), present)
    balancer.combine(torch.ones(4), present, None)
    return balancer.combine_block(gradients, present, number)


def test_signs_are_drawn_by_their_share():
    balancer = runs.built("graddrop")
    gradients = torch.tensor([3.0, -1.0, 0.0, 0.0])[:, None].expand(4, 3000).clone()
    found = blocks_of(balancer, gradients, torch.tensor([True, True, False, True]))
    assert found.shape == (3000,)
    assert set(found.unique().tolist()) == {3.0, -1.0}
    assert float((found == 3.0).double().mean()) == pytest.approx(0.75, abs=0.03)


def test_blocks_and_updates_have_draws_of_their_own():
    balancer, again = runs.built("graddrop"), runs.built("graddrop")
    gradients = torch.tensor([1.0, -1.0, 0.0, 0.0])[:, None].expand(4, 100).clone()
    everyone = torch.ones(4, dtype=torch.bool)
    torch.manual_seed(5)
    first, second = blocks_of(balancer, gradients, everyone), balancer.combine_block(gradients, everyone, 1)
    third = blocks_of(balancer, gradients, everyone)
    torch.manual_seed(6)  # they are not torch's global draws
    assert torch.equal(first, blocks_of(again, gradients, everyone))
    assert torch.equal(second, again.combine_block(gradients, everyone, 1))
    for other in (second, third):
        assert 20 < int((first != other).sum()) < 80


@pytest.mark.parametrize("scale_heads", [True, False])
def test_parts_of_two_ranks_draw_what_whole_rows_do(monkeypatch, scale_heads):
    """In several blocks, which the parts cut; one parameter is a task's own."""
    monkeypatch.setattr(task_gradients, "_BLOCK", 16)
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(30, generator=generator)), nn.Parameter(torch.ones(20))]
    factors = torch.randn(4, 50, generator=generator)
    present = torch.ones(4, dtype=torch.bool)

    def update(ranges, gather):
        balancer, gradients = runs.built("graddrop"), TaskGradients(parameters, 4)
        for task in range(4):
            loss = (parameters[0] * factors[task, :30]).sum()
            if task == 2:
                loss = loss + (parameters[1] * factors[task, 30:]).sum()
            gradients.add(task, loss, retain_graph=False)
        if ranges:
            part = torch.cat([gradients.rows[:, start:end] for start, end in ranges], dim=1)
            gradients.keep_part(part, ranges)
        gradients.scale_(torch.tensor([1.0, 2.0, 0.5, 1.0]))
        balancer.combine(torch.ones(4), present, None)
        return gradients.combine_blocks(
            balancer.combine_block, present, scale_heads=scale_heads, gather=gather
        )

    whole = torch.cat(update([], None))
    assert torch.equal(whole[30:], 0.5 * factors[2, 30:])
    weighted = torch.tensor([1.0, 2.0, 0.5, 1.0]) @ factors[:, :30]
    assert 5 < int((~torch.isclose(whole[:30], weighted)).sum()) <= 30
    for ranges in ([(0, 7), (40, 45)], [(7, 40), (45, 50)]):
        expected = torch.cat([whole[start:end] for start, end in ranges])
        seen = []
        update(ranges, lambda part, seen=seen: seen.append(part) or torch.zeros(50))
        assert torch.equal(seen[0], expected)


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
    found = balancer.combine_block(gradients * weights[:, None], present, 0)
    assert torch.allclose(found, (gradients * weights[:, None])[:3].sum(0))


def test_bad_leaks():
    with pytest.raises(ValueError, match="leak of task 'seg' is 2"):
        runs.built("graddrop", leak={"seg": 2.0})
    with pytest.raises(ValueError, match="Did you mean 'seg'"):
        runs.built("graddrop", leak={"segg": 0.5})

"""wPCGrad: the order's law, the proof's two properties, and both modes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perception.balancing import MultiTaskBalancer, StaticPriority, UniformPriority, WPCGradWeighting
from perception.balancing.wpcgrad import draw_order
from tests.balancing import cases, naive


class Fixed:
    """A priority that is no class of ours."""

    def __init__(self, *values):
        self.values = values

    def probabilities(self):
        return torch.tensor(self.values, dtype=torch.float64)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), order=st.permutations(range(5)))
def test_the_first_anchor_stays_whole_and_no_conflict_is_left(seed, order):
    matrix = cases.draw(seed, num_tasks=5)
    gram = matrix @ matrix.T
    method = WPCGradWeighting(UniformPriority())
    combinations = method.combinations_for_order(gram, order)
    assert torch.equal(combinations[order[0]], torch.eye(5, dtype=torch.float64)[order[0]])
    products = combinations @ gram @ combinations.T
    assert float(products.min()) >= -1e-12 * float(gram.diagonal().max())
    final = naive.wpcgrad(matrix, order)
    assert cases.relative_error(combinations @ matrix, final, matrix) <= 1e-10
    assert cases.relative_error(method.weights_for_order(gram, order) @ matrix, final.sum(0), matrix) <= 1e-10


def test_single_anchor_in_closed_form():
    for seed in range(20):
        matrix = cases.draw(seed, num_tasks=4)
        gram = matrix @ matrix.T
        found = WPCGradWeighting(UniformPriority(), mode="anchor").weights_for_order(gram, [2, 0, 1, 3])
        conflicts = gram[2].clamp(max=0)
        expected = torch.ones(4, dtype=torch.float64)
        expected[2] = 1 - conflicts.sum() / gram[2, 2]
        assert torch.allclose(found, expected)


def test_two_tasks_expect_one_minus_priority_times_projection():
    gram = torch.tensor([[1.0, -0.5], [-0.5, 4.0]], dtype=torch.float64)
    method = cases.seeded(WPCGradWeighting(Fixed(0.8, 0.2)), 0)
    mean = torch.stack([method(gram) for _ in range(1500)]).mean(0)
    assert mean.tolist() == pytest.approx([1 + 0.8 * 0.5, 1 + 0.2 * 0.125], abs=0.03)


def test_orders_follow_plackett_luce():
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    orders = [tuple(draw_order(probabilities, generator)) for _ in range(4000)]
    assert sum(order[0] == 0 for order in orders) / 4000 == pytest.approx(0.6, abs=0.03)
    assert sum(order == (1, 0, 2) for order in orders) / 4000 == pytest.approx(0.3 * 0.6 / 0.7, abs=0.03)


def test_tasks_without_probability_come_last_in_any_order():
    generator = torch.Generator().manual_seed(0)
    orders = {
        tuple(draw_order(torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64), generator)) for _ in range(50)
    }
    assert orders == {(1, 0, 2), (1, 2, 0)}


def test_the_report_says_who_was_projected_onto_whom():
    method = cases.seeded(WPCGradWeighting(Fixed(0.0, 1.0)), 0)
    method(torch.tensor([[1.0, -0.5], [-0.5, 4.0]]))
    report = method.report()
    assert report["order"] == ["1", "0"]
    assert report["projected"] == [["0", "1"]]
    assert report["priorities"] == {"0": 0.0, "1": 1.0}


def test_a_vanished_anchor_is_skipped():
    # The second gradient is the first reversed: nothing of it is left, and nothing is divided by it.
    matrix = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.3, 1.0]], dtype=torch.float64)
    found = WPCGradWeighting(UniformPriority()).weights_for_order(matrix @ matrix.T, [0, 1, 2])
    assert (found @ matrix).tolist() == pytest.approx([1.3, 1.0])


@pytest.mark.parametrize(
    ("priority", "message"),
    [
        (Fixed(0.5, 0.6), "sums to 1.1; it must sum to 1"),
        (Fixed(1.5, -0.5), r"every probability must lie in \[0, 1\]"),
        (Fixed(1.0), "has 1 values for the 2 tasks"),
        (Fixed(float("nan"), 1.0), "every probability"),
    ],
)
def test_bad_priorities(priority, message):
    with pytest.raises(ValueError, match=message):
        WPCGradWeighting(priority)(torch.eye(2))


def test_any_number_of_tasks_one_after_the_other():
    method = WPCGradWeighting(UniformPriority())
    for num_tasks in (3, 2, 1, 4):
        assert method(torch.eye(num_tasks)).tolist() == [1.0] * num_tasks
    for num_tasks in (3, 2):  # a schedule for any number of tasks
        staged = WPCGradWeighting(StaticPriority([(1, 2, "uniform"), (3, 4, "uniform")]))
        assert staged(torch.eye(num_tasks)).tolist() == [1.0] * num_tasks


def test_bad_priorities_are_found_before_the_first_step():
    balancer = MultiTaskBalancer(combination=[WPCGradWeighting(Fixed(0.5, 0.6))])
    with pytest.raises(ValueError, match="it must sum to 1"):
        balancer.setup(("det", "seg"), max_epochs=1, total_steps=1, seed=0)


def test_a_generator_of_its_own_is_in_the_state():
    def built(seed):
        method = WPCGradWeighting(UniformPriority(), generator=torch.Generator().manual_seed(seed))
        balancer = MultiTaskBalancer(combination=[method])
        balancer.setup(("a", "b", "c", "d"), max_epochs=1, total_steps=1, seed=0)
        return balancer

    def orders(balancer):
        gram, everyone = torch.eye(4, dtype=torch.float64), torch.ones(4, dtype=torch.bool)
        found = []
        for _ in range(6):
            balancer.combine(torch.ones(4), everyone, gram)
            found.append(balancer.report()["WPCGradWeighting"]["order"])
        return found

    whole, resumed = built(5), built(6)
    orders(whole)
    resumed.load_state_dict(whole.state_dict())
    assert orders(resumed) == orders(whole)
    lent = MultiTaskBalancer(combination=[WPCGradWeighting(UniformPriority())])
    lent.setup(("a", "b", "c", "d"), max_epochs=1, total_steps=1, seed=0)
    assert "generator" not in lent.state_dict()["components"][1]  # the balancer saves it
    with pytest.raises(ValueError, match="Resume with the balancer that wrote it"):
        lent.load_state_dict(whole.state_dict())


def test_bad_arguments():
    with pytest.raises(ValueError, match="mode is 'first'; allowed: 'loop'"):
        WPCGradWeighting(UniformPriority(), mode="first")
    with pytest.raises(TypeError, match="needs a method probabilities"):
        WPCGradWeighting([0.5, 0.5])
    with pytest.raises(ValueError, match="must name each of the 2 tasks once"):
        WPCGradWeighting(UniformPriority()).weights_for_order(torch.eye(2), [0, 0])

"""Loss weightings and the geometric mean: the papers' numbers, TorchJD's own runs, zero and missing losses."""

import math

import pytest
import torch
from torchjd.scalarization import FAMO, IMTLL, STCH, UW
from torchjd.scalarization import GeometricMean as TorchJDGeometricMean

from perception.balancing import AchievementWeights, DynamicTaskWeights, GeometricMean, build_balancer
from perception.balancing.component import Setting
from perception.balancing.famo import FAMOWeights
from perception.balancing.learned_weights import IMTLLossWeights, UncertaintyWeights
from perception.balancing.loss_weighting import scalarizer_weights
from perception.balancing.masked_adam import MaskedAdam
from perception.balancing.scalarizers import DynamicWeightAverage, RandomWeights, SmoothTchebycheffWeights
from tests.balancing import runs

THREE = ("seg", "depth", "normal")
POTENTIALS = {"seg": 0.4453, "depth": 0.8087, "normal": 0.4572}
ALL = torch.ones(3, dtype=torch.bool)


def ready(component, tasks=THREE):
    generator = torch.Generator().manual_seed(0)
    component.setup(Setting(task_names=tasks, max_epochs=10, total_steps=100, generator=generator))
    return component


def of(weighting, losses=(1.0, 1.0, 1.0), present=ALL):
    return weighting.weights(torch.tensor(losses, dtype=torch.float64), present).tolist()


@pytest.mark.parametrize(
    ("kpis", "expected"),
    [
        ((0.0, 0.0, 0.0), (1 / 3, 1 / 3, 1 / 3)),
        ((0.10, 0.40, 0.10), (0.3674, 0.2620, 0.3706)),
        ((0.30, 0.70, 0.20), (0.3182, 0.2886, 0.3933)),
        ((0.4377, 0.8205, 0.3969), (0.3308, 0.3298, 0.3394)),
    ],
)
def test_achievement_of_the_official_code(kpis, expected):
    weights = ready(AchievementWeights(POTENTIALS))
    assert of(weights) == [1 / 3] * 3
    weights.update_kpis(dict(zip(THREE, kpis, strict=True)))
    assert of(weights) == pytest.approx(expected, abs=1e-4)


def test_achievement_averages_scores_and_stops_at_full():
    weights = ready(AchievementWeights(POTENTIALS, momentum=0.1))
    weights.update_kpis({"seg": 0.2, "depth": 5.0, "normal": 0.0})
    weights.update_kpis({"seg": 0.3})
    assert weights.report()["achievement"]["seg"] == pytest.approx((0.1 * 0.3 + 0.9 * 0.2) / 0.4453)
    raw = [(1 - 0.21 / 0.4453 / 1.05) ** 2, 0.0, 1.0]
    total = sum(math.exp(value) for value in raw)
    assert of(weights) == pytest.approx([math.exp(value) / total for value in raw])
    seg, _, normal = of(weights, present=torch.tensor([True, False, True]))
    assert seg + normal == pytest.approx(1)
    assert seg / normal == pytest.approx(math.exp(raw[0] - raw[2]))


def test_achievement_of_an_error_is_potential_over_value():
    weights = ready(
        AchievementWeights({"seg": 0.4, "depth": 0.5, "normal": 10.0}, lower_is_better=("normal",))
    )
    weights.update_kpis({"seg": 0.2, "depth": 0.25, "normal": 20.0})
    assert list(weights.report()["achievement"].values()) == pytest.approx([0.5] * 3)
    weights.update_kpis({"normal": 0.0})
    weights.scores.scores["normal"] = 0.0
    assert all(math.isfinite(value) for value in of(weights))


def test_a_score_that_is_no_number_keeps_the_last():
    weights = ready(AchievementWeights(POTENTIALS))
    weights.update_kpis({"seg": 0.2, "depth": 0.4, "normal": 0.2})
    before = of(weights)
    weights.update_kpis({"seg": math.nan})
    assert of(weights) == before
    with pytest.raises(ValueError, match="Did you mean 'seg'"):
        weights.update_kpis({"sege": 0.2})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"potentials": {**POTENTIALS, "seg": 0.0}}, "the potential of task 'seg' is 0.0"),
        ({"potentials": {"seg": 0.4}}, r"potentials lacks the tasks \['depth', 'normal'\]"),
        ({"potentials": {**POTENTIALS, "det": 0.4}}, "unknown task 'det'"),
        ({"potentials": POTENTIALS, "margin": 0.9}, "margin is 0.9"),
        ({"potentials": POTENTIALS, "momentum": 0.0}, "momentum is 0.0"),
        ({"potentials": POTENTIALS, "gamma": -2.0}, "gamma is -2.0"),
        ({"potentials": POTENTIALS, "lower_is_better": ("normals",)}, "Did you mean 'normal'"),
    ],
)
def test_bad_arguments_of_achievement(arguments, message):
    with pytest.raises(ValueError, match=message):
        ready(AchievementWeights(**arguments))


def test_dwa_of_the_paper():
    weights = ready(DynamicWeightAverage(), tasks=("a", "b"))
    two = torch.ones(2, dtype=torch.bool)
    weights.end_epoch(torch.tensor([1.0, 1.0]))
    assert of(weights, (1.0, 1.0), two) == [1, 1]
    weights.end_epoch(torch.tensor([1.0, 4.0]))
    expected = 2 * torch.softmax(torch.tensor([0.5, 2.0], dtype=torch.float64), 0)
    assert of(weights, (1.0, 1.0), two) == pytest.approx(expected.tolist())
    weights.end_epoch(torch.tensor([math.nan, 4.0]))
    assert of(weights, (1.0, 1.0), two) == pytest.approx([1, 1])


def test_guo_et_al_as_loss_weights():
    weights = ready(DynamicTaskWeights(2.0))
    assert of(weights) == [1, 1, 1]
    weights.update_kpis({"seg": 0.5, "depth": 1.0, "normal": 0.0})
    assert of(weights) == pytest.approx([-(0.5**2) * math.log(0.5), 0.0, 46.0])
    by_loss = ready(DynamicTaskWeights(2.0, form="loss"))
    by_loss.end_epoch(torch.tensor([1.0, 2.0, 1.0]))
    assert of(by_loss) == pytest.approx([0.5, 2.0, 0.5])


@pytest.mark.parametrize(
    ("ours", "theirs"), [(UncertaintyWeights, UW), (IMTLLossWeights, IMTLL)], ids=["uncertainty", "imtl_l"]
)
def test_learned_weights_are_torchjds_with_adam(ours, theirs):
    weights, scalarizer = ready(ours(lr=0.05)), theirs(3).double()
    optimizer = torch.optim.Adam(scalarizer.parameters(), lr=0.05)
    for number in range(8):
        losses = runs.batch(3 * number)[1][:3]
        found = weights.weights(losses, ALL)
        assert torch.allclose(found, scalarizer_weights(scalarizer, losses), rtol=1e-10)
        weights.observe(losses, ALL, found, None)
        weights.end_step()
        optimizer.zero_grad()
        scalarizer(losses).backward()
        optimizer.step()


def test_famo_is_torchjds_with_the_next_losses_as_those_after_the_update():
    weights, scalarizer = ready(FAMOWeights()), FAMO(3).double()
    for number in range(8):
        losses = runs.batch(3 * number)[1][:3]
        if number:
            scalarizer.update(losses)
        found = weights.weights(losses, ALL)
        assert torch.allclose(found, scalarizer_weights(scalarizer, losses), rtol=1e-8)
        weights.observe(losses, ALL, found, None)
        weights.end_step()
    assert float(found.std()) > 0


def test_famo_learns_in_groups_as_it_does_on_each_group_alone():
    """Connection strength weighs and combines one group after the other, then ends the step."""
    parts = {"first": THREE[:2], "second": THREE[2:]}
    spec = {"name": "connection_strength", "groups": parts, "weighting": "famo"}
    groups, alone = build_balancer(spec), build_balancer("famo")
    groups.setup(THREE, max_epochs=2, total_steps=10, seed=0)
    alone.setup(THREE[:2], max_epochs=2, total_steps=10, seed=0)
    for number in range(8):
        losses = runs.batch(3 * number)[1][:3]
        for present in (torch.tensor([True, True, False]), torch.tensor([False, False, True])):
            weights = groups.weigh(losses * present, present)
            groups.combine(weights * losses * present, present, None)
        groups.end_step()
        weights = alone.weigh(losses[:2], torch.tensor([True, True]))
        alone.combine(weights * losses[:2], torch.tensor([True, True]), None)
        alone.end_step()
    assert torch.equal(groups.weighting.logits[:2], alone.weighting.logits)
    assert groups.weighting.logits[0] != 0
    assert groups.weighting.logits[2] == 0


def test_famo_takes_the_fall_per_update_of_a_task_that_batches_lacked():
    """The rare task falls as fast as the others, so nothing is to be learned."""
    weights = ready(FAMOWeights(weight_decay=0.0))
    for number in range(7):
        present = torch.tensor([True, True, number % 3 == 0])
        losses = torch.tensor([1.0, 3.0, 0.5], dtype=torch.float64) * 0.9**number * present
        weights.observe(losses, present, weights.weights(losses, present), None)
        weights.end_step()
    assert weights.adam.counts.tolist() == [6, 6, 2]
    assert weights.adam.first.abs().max() < 1e-6  # the moving average of the logits' gradients


def test_absent_tasks_rest_in_the_adam():
    adam = ready(MaskedAdam(lr=0.1))
    values = torch.zeros(3, dtype=torch.float64)
    active = torch.tensor([True, False, True])
    moved = adam.stepped(values, torch.ones(3, dtype=torch.float64), active)
    assert moved.tolist() == pytest.approx([-0.1, 0.0, -0.1])
    assert adam.counts.tolist() == [1, 0, 1]


def test_random_weights_and_a_smooth_maximum():
    weights = ready(RandomWeights())
    first, second = of(weights), of(weights)
    assert first != second
    assert sum(first) == pytest.approx(1)
    losses = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    smooth = ready(SmoothTchebycheffWeights(mu=0.1))
    assert of(smooth, losses.tolist()) == pytest.approx(torch.softmax(losses / 0.1, 0).tolist())
    even = scalarizer_weights(STCH(0.1), losses)
    assert of(
        ready(SmoothTchebycheffWeights(mu=0.1, preferences=dict.fromkeys(THREE, 1 / 3))), losses.tolist()
    ) == pytest.approx(even.tolist())


def test_gradnorm_moves_weights_to_the_slow_task():
    balancer = runs.built("gradnorm", lr=0.05)
    matrix = torch.eye(4, 10, dtype=torch.float64) * torch.tensor([[4.0], [1.0], [1.0], [1.0]])
    present = torch.ones(4, dtype=torch.bool)
    for step in range(30):
        losses = torch.tensor([1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
        losses[1:3] *= 0.9**step  # seg trains slowest of the small ones
        runs.update(balancer, matrix, losses, present)
        balancer.end_step()
    weights = balancer.report()["GradNormWeights"]["gradnorm"]
    assert sum(weights.values()) == pytest.approx(4)
    assert weights["seg"] > weights["box"] == pytest.approx(weights["velocity"])
    assert weights["cls"] < weights["seg"]


def test_gradnorms_gradient_is_autograds():
    weighting = runs.built("gradnorm").weighting
    weighting.raw = torch.tensor([0.5, 1.5, 1.2, 0.8], dtype=torch.float64)
    weighting.first_losses = torch.tensor([1.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    gradients, losses, present = runs.batch(0)
    raw = weighting.raw.clone().requires_grad_()
    norms = raw * gradients.norm(dim=1)
    rates = losses / weighting.first_losses
    target = (norms.mean() * (rates / rates.mean()) ** 1.5).detach()
    (expected,) = torch.autograd.grad((norms - target).abs().sum(), raw)
    weighted = gradients * weighting.raw[:, None]
    weighting.observe(losses, present, weighting.raw, weighted @ weighted.T)
    assert torch.allclose(weighting.gradients, expected)


def test_even_geometric_mean_is_torchjds():
    losses = torch.tensor([0.3, 2.0, 40.0], dtype=torch.float64)
    expected = scalarizer_weights(TorchJDGeometricMean(), losses)
    assert torch.allclose(GeometricMean().coefficients(losses, torch.ones(3)), expected)


@pytest.mark.parametrize("lost", [0.0, 1e-300, 1e-9])
def test_a_lost_loss_neither_stops_the_others_nor_runs_away(lost):
    even = torch.full((3,), 1 / 3, dtype=torch.float64)
    found = GeometricMean().coefficients(torch.tensor([1.0, lost, 4.0], dtype=torch.float64), even)
    # The others keep the coefficients of their own mean, times their share of the weights.
    others = GeometricMean().coefficients(torch.tensor([1.0, 4.0]), torch.ones(2)) * 2 / 3
    assert torch.allclose(found[[0, 2]], others)
    assert float(found[1]) <= 1e6


def test_all_losses_0_or_one_negative():
    assert GeometricMean().coefficients(torch.zeros(2), torch.ones(2)).tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="needs losses of at least 0"):
        GeometricMean().coefficients(torch.tensor([1.0, -1.0]), torch.ones(2))

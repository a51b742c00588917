"""Any weighting with any chain of combinations, checked on the gradients themselves."""

import pytest
import torch
from torchjd.aggregation import CAGrad

from perception.balancing import (
    AchievementWeights,
    ConstantWeights,
    DynamicTaskPriority,
    GeometricMean,
    LinearPacing,
    MCLGSWeighting,
    MultiTaskBalancer,
    PCGradWeighting,
    StaticPriority,
    UniformPriority,
    WPCGradWeighting,
    build_balancer,
)
from perception.balancing.torchjd_weighting import cagrad, imtl_g
from tests.balancing import cases, naive, runs

EVERYONE = torch.ones(4, dtype=torch.bool)


def set_up(balancer):
    balancer.setup(runs.TASKS, max_epochs=24, total_steps=2400, seed=0)
    return balancer


def test_mclgs_then_cagrad_is_cagrad_on_gradients_scaled_by_n_times_mclgs():
    matrix, losses, _ = runs.batch(0)
    balancer = set_up(MultiTaskBalancer(combination=[MCLGSWeighting(LinearPacing(40, 0)), cagrad(c=0.4)]))
    scaled = matrix * 4 * MCLGSWeighting(LinearPacing(40, 0))(matrix @ matrix.T)[:, None]
    found = runs.update(balancer, matrix, losses, EVERYONE)
    assert torch.allclose(found, CAGrad(c=0.4)(scaled), rtol=1e-4, atol=1e-5)
    assert balancer.convention == "mean"
    assert balancer.scale_heads


def test_achievement_then_pcgrad_is_pcgrad_on_weighted_gradients():
    matrix, losses, _ = runs.batch(0)
    balancer = set_up(
        MultiTaskBalancer(weighting=AchievementWeights(runs.POTENTIALS), combination=[PCGradWeighting()])
    )
    balancer.update_kpis({"cls": 0.1, "box": 0.6, "velocity": 0.2, "seg": 0.4})
    weights = balancer.weighting.weights(losses, EVERYONE)
    state = balancer.generator.get_state()
    found = runs.update(balancer, matrix, losses, EVERYONE)
    twin = torch.Generator()
    twin.set_state(state)
    generator = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=twin)))
    orders = [[int(j) for j in torch.randperm(4, generator=generator) if int(j) != task] for task in range(4)]
    expected = naive.pcgrad(matrix * weights[:, None], orders)
    assert torch.allclose(found, expected)
    assert weights.sum() == pytest.approx(1)


def test_a_geometric_mean_is_the_gradient_of_the_product():
    generator = torch.Generator().manual_seed(0)
    parameters = torch.randn(10, dtype=torch.float64, generator=generator).requires_grad_()
    targets = torch.randn(4, 10, dtype=torch.float64, generator=generator)
    losses = ((parameters - targets) ** 2).sum(1) * torch.tensor([1.0, 1e-3, 50.0, 0.2])
    exponents = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    (expected,) = torch.autograd.grad((losses**exponents).prod(), parameters, retain_graph=True)
    matrix = torch.stack([torch.autograd.grad(loss, parameters, retain_graph=True)[0] for loss in losses])
    weighting = ConstantWeights(dict(zip(runs.TASKS, (exponents * 7).tolist(), strict=True)))
    balancer = set_up(MultiTaskBalancer(weighting=weighting, combination=[GeometricMean()]))
    assert torch.allclose(runs.update(balancer, matrix, losses, EVERYONE), expected, rtol=1e-12)
    # A constant factor of a loss changes the size of the step, never its direction.
    scaled = set_up(
        MultiTaskBalancer(weighting=weighting, combination=[GeometricMean()], scales={"box": 1000.0})
    )
    found = runs.update(scaled, matrix, losses, EVERYONE)
    assert torch.allclose(found, expected * 1000**0.2, rtol=1e-12)


def test_a_geometric_mean_can_go_before_gram_methods():
    matrix, losses, _ = runs.batch(0)
    balancer = set_up(MultiTaskBalancer(combination=[GeometricMean(), imtl_g()], convention="sum"))
    geometric = 4 * GeometricMean().coefficients(losses, torch.ones(4))
    expected = 4 * naive.imtl_g(matrix * geometric[:, None])
    assert torch.allclose(runs.update(balancer, matrix, losses, EVERYONE), expected)


@pytest.mark.parametrize(
    "name", ["pcgrad", "mclgs", "aligned_mtl", "geometric", "dwa", "rlw", "achievement+pcgrad"]
)
def test_sum_is_the_number_of_tasks_times_mean(name):
    total, mean = runs.built(name, convention="sum"), runs.built(name, convention="mean")
    for number in range(2):  # the second batch lacks a task
        gradients, losses, present = runs.batch(number)
        found = runs.update(total, gradients, losses, present)
        expected = int(present.sum()) * runs.update(mean, gradients, losses, present)
        assert torch.allclose(found, expected)


def test_conventions_are_those_of_the_papers():
    names = {
        name: runs.built(name)
        for name in ("pcgrad", "wpcgrad", "gradvac", "mclgs", "cagrad", "mgda", "imtl_g")
    }
    assert {name: balancer.convention for name, balancer in names.items()} == {
        "pcgrad": "sum",
        "wpcgrad": "sum",
        "gradvac": "sum",
        "mclgs": "mean",
        "cagrad": "mean",
        "mgda": "mean",
        "imtl_g": "mean",
    }
    assert [name for name, balancer in names.items() if balancer.scale_heads] == ["mclgs"]
    assert runs.built("pcgrad", scale_heads=True).scale_heads
    assert runs.built("amtl").scale_heads


def test_priorities_renormalise_over_present_tasks():
    priority = StaticPriority([(1, 24, {"cls": 0.6, "box": 0.3, "seg": 0.1})])
    balancer = set_up(MultiTaskBalancer(combination=[WPCGradWeighting(priority)]))
    matrix = cases.draw(0, num_tasks=4, low=0, high=0)
    present = torch.tensor([False, True, False, True])
    firsts = []
    for _ in range(400):
        runs.update(balancer, matrix * present[:, None], torch.ones(4, dtype=torch.float64), present)
        firsts.append(balancer.report()["WPCGradWeighting"]["order"][0])
    assert firsts.count("box") / 400 == pytest.approx(0.75, abs=0.07)


def test_dynamic_priorities_see_scaled_losses():
    priority = DynamicTaskPriority(1)
    balancer = set_up(MultiTaskBalancer(combination=[WPCGradWeighting(priority)], scales={"seg": 4.0}))
    balancer.end_epoch({"cls": 1.0, "box": 1.0, "velocity": 2.0, "seg": 1.0})
    assert priority.probabilities().tolist() == pytest.approx([1 / 8, 1 / 8, 2 / 8, 4 / 8])
    matrix, losses, _ = runs.batch(0)
    runs.update(balancer, matrix, losses, EVERYONE)
    report = balancer.report()
    assert report["grad_norms"]["seg"] == pytest.approx(float(matrix[3].norm()))
    assert report["WPCGradWeighting"]["priorities"]["seg"] == pytest.approx(0.5)


def test_the_report_gives_cosines_and_conflicts():
    matrix = torch.tensor([[1.0, 0, 0], [-1.0, 1.0, 0], [0, 0, 2.0], [0, 1.0, 0]], dtype=torch.float64)
    balancer = set_up(MultiTaskBalancer(combination=[WPCGradWeighting(UniformPriority())]))
    runs.update(balancer, matrix, torch.ones(4, dtype=torch.float64), EVERYONE)
    report = balancer.report()
    assert report["cosines"]["cls/box"] == pytest.approx(-(0.5**0.5))
    assert report["conflict_share"] == pytest.approx(1 / 6)
    assert report["grad_norms"]["velocity"] == 2
    assert len(report["WPCGradWeighting"]["projected"]) == 1


def test_bad_compositions():
    with pytest.raises(ValueError, match="must be the first stage"):
        MultiTaskBalancer(combination=[PCGradWeighting(), GeometricMean()])
    for spec in (
        "gradnorm+geometric",
        {"name": "cross_stitch", "weighting": "gradnorm", "combination": "geometric"},
    ):
        with pytest.raises(ValueError, match="GradNormWeights learns from the norms of the gradients"):
            build_balancer(spec)
    build_balancer("gradnorm+pcgrad")
    with pytest.raises(ValueError, match="convention is 'avg'"):
        MultiTaskBalancer(convention="avg")
    with pytest.raises(ValueError, match="scale of task 'seg' is 0"):
        MultiTaskBalancer(scales={"seg": 0.0})
    with pytest.raises(ValueError, match="Did you mean 'seg'"):
        set_up(MultiTaskBalancer(scales={"segg": 1.0}))
    with pytest.raises(ValueError, match="needs the Gram matrix"):
        set_up(build_balancer("pcgrad")).combine(torch.ones(4), EVERYONE, None)


@pytest.mark.parametrize("name", ["pcgrad", "wpcgrad", "mclgs"])
def test_the_report_of_one_present_task_holds_nothing_of_an_earlier_step(name):
    matrix = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [0.0, -1.0], [1.0, -1.0]], dtype=torch.float64)
    balancer = runs.built(name)
    runs.update(balancer, matrix, torch.ones(4, dtype=torch.float64), EVERYONE)
    (stage,) = balancer.combination
    assert type(stage).__name__ in balancer.report()
    alone = torch.tensor([False, True, False, False])
    runs.update(balancer, matrix * alone[:, None], alone.double(), alone)
    assert set(balancer.report()) == {
        "weights",
        "coefficients",
        "grad_norms",
        "cosines",
        "conflict_share",
    }

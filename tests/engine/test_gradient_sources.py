"""The update of every method against gradients computed the slow way."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from perception.balancing import SharedFeatures, TaskLosses, balancer_names, build_balancer
from perception.engine import BalancedOptimWrapper

TASKS = ("cls", "box", "velocity", "seg")
KPI = {"cls": 0.2, "box": 0.5, "velocity": 0.7, "seg": 0.3}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "constant": {"weights": {"cls": 1.0, "box": 2.0, "velocity": 0.5, "seg": 3.0}},
    "achievement": {"potentials": KPI},
    "dtp": {"form": "loss"},
    "stch": {"mu": 1.0},
    "cagrad": {"c": 0.5},
    "fairgrad": {"alpha": 1.0},
}


class Net(nn.Module):
    """Trunk → (decoder → three tasks), and one task straight from the trunk."""

    task_names = TASKS
    kpi_metrics = {task: (f"score_{task}",) for task in TASKS}

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.trunk = nn.Linear(4, 6)
        self.decoder = nn.Linear(6, 5)
        self.heads = nn.ModuleDict({task: nn.Linear(5 if task != "seg" else 6, 2) for task in TASKS})
        self.unused = nn.Linear(2, 2)
        self.shared_features = SharedFeatures()
        self.double()

    def last_shared_parameters(self) -> list[Tensor]:
        return list(self.trunk.parameters())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        (feature,) = self.shared_features(self.trunk(self.conv(x).tanh().mean(dim=(2, 3))).tanh())
        decoded = self.decoder(feature).tanh()
        return {t: head(decoded if t != "seg" else feature) for t, head in self.heads.items()}


def batch(seed: int, size: int = 3) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 3, 5, 5, generator=generator, dtype=torch.float64)
    return x, {t: torch.randn(size, 2, generator=generator, dtype=torch.float64) for t in TASKS}


def task_losses(net: Net, data: tuple[Tensor, dict[str, Tensor]], absent: tuple[str, ...] = ()) -> TaskLosses:
    x, targets = data
    outputs = net(x)
    losses = {t: (outputs[t] - targets[t]).square().mean() for t in TASKS if t not in absent}
    return TaskLosses(losses, {t: torch.tensor(float(len(x))) for t in losses}, TASKS)


def make(net: Net, balancer: Any, *, lr: float = 0.1, **options: Any) -> BalancedOptimWrapper:
    wrapper = BalancedOptimWrapper(torch.optim.SGD(net.parameters(), lr=lr), balancer=balancer, **options)
    wrapper.balanced.prepare(net, TASKS, max_epochs=24, total_steps=100, seed=3)
    wrapper.balanced.begin_epoch(1)
    return wrapper


def spec_of(name: str) -> dict[str, Any]:
    arguments = {key: value for part in name.split("+") for key, value in ARGUMENTS.get(part, {}).items()}
    if name == "amtl" or "achievement" in name:
        arguments["potentials"] = KPI
    if "dtp+" in name:
        arguments["form"] = "loss"
    return {"name": name, **arguments}


def step(
    wrapper: BalancedOptimWrapper, net: Net, data: Any, absent: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """One update; how much each parameter moved."""
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    with wrapper.optim_context(net):
        losses = task_losses(net, data, absent)
    wrapper.update_params(losses)
    return {name: (before[name] - p.detach()) / 0.1 for name, p in net.named_parameters()}


def slow_update(
    net: Net, balancer: Any, data: Any, absent: tuple[str, ...] = (), over: Any = None
) -> dict[str, Tensor]:
    """Task gradients one by one with dicts, the Gram matrix entry by entry, the sum parameter by parameter."""
    losses = task_losses(net, data, absent)
    present = torch.tensor(losses.present)
    values = torch.tensor(
        [float(losses[t].detach()) if t in losses else 0.0 for t in TASKS], dtype=torch.float64
    )
    weights = balancer.weigh(values, present)
    gradients: dict[str, dict[str, Tensor]] = {}
    for number, task in enumerate(TASKS):
        if task in losses:
            names, parameters = zip(*net.named_parameters(), strict=True)
            found = torch.autograd.grad(losses[task], parameters, retain_graph=True, allow_unused=True)
            gradients[task] = {
                n: g * weights[number] for n, g in zip(names, found, strict=True) if g is not None
            }
    owners = {n: [t for t in gradients if n in gradients[t]] for n, _ in net.named_parameters()}
    gram = torch.zeros(4, 4, dtype=torch.float64)
    for i, a in enumerate(TASKS):
        for j, b in enumerate(TASKS):
            for name, tasks in owners.items():
                is_counted = len(tasks) >= 2 if over is None else name in over
                if is_counted and a in tasks and b in tasks:
                    gram[i, j] += (gradients[a][name] * gradients[b][name]).sum()
    coefficients = balancer.combine(weights * values, present, gram if balancer.needs_gram else None)
    update = {}
    for name, parameter in net.named_parameters():
        update[name] = torch.zeros_like(parameter)
        for task in owners[name]:
            is_own = len(owners[name]) == 1 and not balancer.scale_heads
            factor = 1.0 if is_own else coefficients[TASKS.index(task)]
            update[name] = update[name] + factor * gradients[task][name]
    return update


def reference(spec: Any) -> Any:
    balancer = build_balancer(spec)
    balancer.setup(TASKS, max_epochs=24, total_steps=100, seed=3)
    balancer.begin_epoch(1)
    return balancer


# They have tests of their own: an update by elements, and models that are changed first.
ELSEWHERE = ("graddrop", "connection_strength", "cross_stitch", "recon", "rotograd")
METHODS = [name for name in balancer_names() if name not in ELSEWHERE]


@pytest.mark.parametrize("absent", [(), ("seg",), ("cls", "velocity")], ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_update_equals_the_slow_way(name: str, absent: tuple[str, ...]) -> None:
    net = Net()
    wrapper, balancer = make(net, spec_of(name)), reference(spec_of(name))
    for seed in range(3):
        expected = slow_update(net, balancer, batch(seed), absent)
        balancer.end_step()
        found = step(wrapper, net, batch(seed), absent)
        for key, value in expected.items():
            assert_close(found[key], value, rtol=1e-6, atol=1e-9, msg=f"{name} {key}")
    assert wrapper.num_updates == 3


@pytest.mark.parametrize("name", ["pcgrad", "mclgs", "imtl_g"])
def test_accumulated_halves_equal_the_whole(name: str) -> None:
    whole, halves = Net(), Net()
    x, targets = batch(0, size=4)
    expected = step(make(whole, name), whole, (x, targets))
    wrapper = make(halves, name, accumulative_counts=2)
    before = {n: p.detach().clone() for n, p in halves.named_parameters()}
    for part in (slice(0, 2), slice(2, 4)):
        with wrapper.optim_context(halves):
            losses = task_losses(halves, (x[part], {t: y[part] for t, y in targets.items()}))
        wrapper.update_params(losses)
    for n, p in halves.named_parameters():
        assert_close((before[n] - p.detach()) / 0.1, expected[n])


def test_features_measure_conflicts_on_the_features() -> None:
    """Oracle: the features as a parameter, and the trunk's gradient by the chain rule in one piece."""
    net, spec = Net(), "pcgrad"
    data = batch(0)
    balancer = reference(spec)
    with net.shared_features.cut():
        losses = task_losses(net, data)
    (leaf,), (root,) = net.shared_features.leaves, net.shared_features.roots
    rows = [torch.autograd.grad(losses[t], leaf, retain_graph=True)[0] for t in TASKS]
    gram = torch.stack([torch.stack([(a * b).sum() for b in rows]) for a in rows])
    values = torch.tensor([float(losses[t].detach()) for t in TASKS], dtype=torch.float64)
    present = torch.ones(4, dtype=torch.bool)
    coefficients = balancer.combine(balancer.weigh(values, present) * values, present, gram)
    combined = sum(c * row for c, row in zip(coefficients, rows, strict=True))
    expected = torch.autograd.grad(root, list(net.trunk.parameters()), combined)
    heads = torch.autograd.grad(
        sum(c * losses[t] for c, t in zip(coefficients, TASKS, strict=True)),
        [net.decoder.weight],
        retain_graph=True,
    )
    own = torch.autograd.grad(losses["seg"], [net.heads["seg"].weight])
    found = step(make(net, spec, gradient_source="features"), net, data)
    assert_close(found["trunk.weight"], expected[0])
    assert_close(found["trunk.bias"], expected[1])
    assert_close(found["decoder.weight"], heads[0])
    assert_close(found["heads.seg.weight"], own[0])
    assert found["unused.weight"].eq(0).all()


def test_last_layer_measures_conflicts_there_and_updates_everything() -> None:
    net = Net()
    expected = slow_update(net, reference("pcgrad"), batch(1), over={"trunk.weight", "trunk.bias"})
    found = step(make(net, "pcgrad", gradient_source="last_layer"), net, batch(1))
    for key, value in expected.items():
        assert_close(found[key], value, msg=key)


@pytest.mark.parametrize("source", ["parameters", "features", "last_layer"])
@pytest.mark.parametrize("scale_heads", [True, False])
def test_between_refreshes_coefficients_are_reused(source: str, scale_heads: bool) -> None:
    spec = {"name": "mgda", "scale_heads": scale_heads}
    net = Net()
    wrapper = make(net, spec, gradient_source=source, interval=2)
    step(wrapper, net, batch(0))
    coefficients = dict(zip(TASKS, wrapper.balanced.state_dict()["coefficients"], strict=True))
    losses = task_losses(net, batch(1))
    expected = {}
    for name, parameter in net.named_parameters():
        own = [t for t in TASKS if name.startswith(f"heads.{t}")]
        total = sum((1.0 if own and not scale_heads else coefficients[t]) * losses[t] for t in (own or TASKS))
        (gradient,) = torch.autograd.grad(total, [parameter], retain_graph=True, allow_unused=True)
        expected[name] = torch.zeros_like(parameter) if gradient is None else gradient
    found = step(wrapper, net, batch(1))
    for key, value in expected.items():
        assert_close(found[key], value, msg=key)
    assert wrapper.balanced.state_dict()["coefficients"] == list(coefficients.values())
    step(wrapper, net, batch(2))
    assert wrapper.balanced.state_dict()["coefficients"] != list(coefficients.values())


@pytest.mark.parametrize("source", ["parameters", "features", "last_layer"])
def test_loss_weights_learn_between_refreshes_too(source: str) -> None:
    net = Net()
    wrapper = make(net, "uncertainty+pcgrad", gradient_source=source, interval=4)
    for seed in range(5):
        step(wrapper, net, batch(seed))
    assert wrapper.balancer.weighting.adam.counts.tolist() == [5.0] * 4
    wrapper = make(net, {"name": "famo+mgda", "scales": {"seg": 3.0}}, gradient_source=source, interval=3)
    for seed in range(5):
        step(wrapper, net, batch(seed))
        losses = [value * (3 if task == "seg" else 1) for task, value in wrapper.last_step["tasks"].items()]
        assert wrapper.balancer.weighting.before.tolist() == pytest.approx(losses, rel=1e-12)
    assert wrapper.balancer.weighting.adam.counts.tolist() == [4.0] * 4
    wrapper = make(net, "gradnorm+pcgrad", gradient_source=source, interval=4)
    for seed in range(5):  # its Gram matrix is there in the first and the fifth
        step(wrapper, net, batch(seed))
    assert wrapper.balancer.weighting.adam.counts.tolist() == [2.0] * 4


def test_graddrop_keeps_one_sign_per_element_and_leaves_heads() -> None:
    net = Net()
    losses = task_losses(net, batch(0))
    rows = [torch.autograd.grad(losses[t], [net.trunk.weight], retain_graph=True)[0] for t in TASKS]
    found = step(make(net, "graddrop"), net, batch(0))["trunk.weight"]
    stacked = torch.stack(rows)
    positive, negative = stacked.clamp(min=0).sum(dim=0), stacked.clamp(max=0).sum(dim=0)
    is_one_of_both = torch.isclose(found, positive) | torch.isclose(found, negative)
    assert is_one_of_both.all()
    assert not torch.isclose(found, stacked.sum(dim=0)).all()


def test_gradients_have_their_parameters_strides() -> None:
    net = Net()
    wrapper = make(net, "pcgrad")
    wrapper.optimizer.zero_grad = lambda *args, **kwargs: None  # type: ignore[method-assign]
    step(wrapper, net, batch(0))
    assert net.conv.weight.grad.stride() == net.conv.weight.stride() != net.conv.weight.contiguous().stride()


def test_watching_changes_nothing_and_tells_the_cosines() -> None:
    plain, watched = Net(), Net()
    wrapper = make(watched, "sum", watch={"gram_interval": 2})
    for seed in range(3):
        first = step(make(plain, "sum"), plain, batch(seed))
        second = step(wrapper, watched, batch(seed))
        for key, value in first.items():
            assert torch.equal(value, second[key])
        assert ("cosines" in wrapper.last_step["balance"]) == (seed != 1)
    report = wrapper.last_step["balance"]
    assert set(report["grad_norms"]) == set(TASKS)
    assert len(report["cosines"]) == 6


def test_watched_norms_do_not_depend_on_the_accumulation() -> None:
    norms = []
    for count in (1, 2):
        net = Net()
        wrapper = make(net, "sum", watch={"gram_interval": 1}, accumulative_counts=count)
        for _ in range(count):
            step(wrapper, net, batch(0))
        norms.append(wrapper.last_step["balance"]["grad_norms"])
    assert norms[1] == pytest.approx(norms[0], rel=1e-12)


def test_report_says_what_the_step_did() -> None:
    net = Net()
    wrapper = make(net, "pcgrad")
    step(wrapper, net, batch(0), absent=("box",))
    report = wrapper.last_step["balance"]
    assert set(report["coefficients"]) == {"cls", "velocity", "seg"}
    assert set(report["cosines"]) == {"cls/velocity", "cls/seg", "velocity/seg"}


def test_a_reused_update_reports_only_what_it_did() -> None:
    net = Net()
    wrapper = make(net, {"name": "rlw+wpcgrad", "scales": {"seg": 3.0}}, interval=2)
    reports = []
    for seed, absent in ((0, ()), (1, ("box",)), (2, ())):
        step(wrapper, net, batch(seed), absent=absent)
        reports.append(wrapper.last_step["balance"])
    first, reused, second = reports
    assert "projected" in first["WPCGradWeighting"]
    assert "projected" in second["WPCGradWeighting"]
    assert set(reused) == {"weights", "reused", "coefficients"}
    assert reused["reused"] is True
    assert not {"reused"} & (first.keys() | second.keys())
    assert reused["weights"] != first["weights"]
    assert list(reused["coefficients"]) == ["cls", "velocity", "seg"]
    for task, value in reused["coefficients"].items():
        expected = first["coefficients"][task] / first["weights"][task] * reused["weights"][task]
        assert value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("source", ["features", "last_layer"])
def test_a_non_finite_gradient_of_another_source_is_dropped_and_named(source: str) -> None:
    net = Net()
    wrapper = make(net, "pcgrad", gradient_source=source)
    with wrapper.optim_context(net):
        losses = task_losses(net, batch(0))
    bad = {**losses, "velocity": losses["velocity"].clone()}
    bad["velocity"].register_hook(lambda gradient: gradient * float("nan"))
    wrapper.update_params(TaskLosses(bad, losses.num_targets, TASKS))
    assert wrapper.last_step["non_finite"]["tasks"] == ["velocity"]
    assert wrapper.num_updates == 0
    step(wrapper, net, batch(1))
    assert wrapper.num_updates == 1


@pytest.mark.parametrize("name", ["sum", "pcgrad", "gradnorm"])
def test_gradients_whose_squares_overflow_skip_the_update(name: str) -> None:
    layer = nn.Linear(200, 200)
    wrapper = BalancedOptimWrapper(torch.optim.SGD(layer.parameters(), lr=0.1), balancer=name)
    wrapper.balanced.prepare(layer, ("a", "b"), max_epochs=1, total_steps=2, seed=0)
    wrapper.balanced.begin_epoch(1)
    before = layer.weight.detach().clone()
    for scale in (3e18, 1.0):  # the gradient's elements are finite in float32, its squared norm is not
        outputs = layer(torch.ones(4, 200))
        losses = {"a": outputs.sum() * scale, "b": outputs.square().mean()}
        wrapper.update_params(TaskLosses(losses, {t: torch.tensor(1.0) for t in losses}, ("a", "b")))
        assert wrapper.last_step["skipped"] == (scale > 1)
        if scale > 1:
            assert torch.equal(layer.weight, before)
            assert wrapper.last_step["non_finite"]["tasks"] == ([] if name == "sum" else ["a"])
    assert not torch.equal(layer.weight, before)


def test_a_non_finite_task_gradient_is_dropped_and_named() -> None:
    net = Net()
    wrapper = make(net, "pcgrad")
    x, targets = batch(0)
    before = [p.detach().clone() for p in net.parameters()]
    losses = task_losses(net, (x, targets))
    bad = dict(losses)
    bad["velocity"] = bad["velocity"] + (net.trunk.weight.sum() * 0).sqrt()  # finite, but not its gradient
    wrapper.update_params(TaskLosses(bad, losses.num_targets, TASKS))
    assert wrapper.last_step["non_finite"]["tasks"] == ["velocity"]
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert wrapper.num_updates == 0
    step(wrapper, net, batch(1))
    assert wrapper.num_updates == 1


def test_a_method_that_compares_gradients_must_know_the_run() -> None:
    net = Net()
    wrapper = BalancedOptimWrapper(torch.optim.SGD(net.parameters(), lr=0.1), balancer="pcgrad")
    with pytest.raises(ValueError, match=r"call prepare\("):
        wrapper.update_params(task_losses(net, batch(0)))


@pytest.mark.parametrize("source", ["features", "last_layer"])
def test_a_model_without_the_source_is_refused(source: str) -> None:
    net = nn.Linear(1, 1)
    wrapper = BalancedOptimWrapper(
        torch.optim.SGD(net.parameters(), lr=0.1), balancer="pcgrad", gradient_source=source
    )
    with pytest.raises(ValueError, match="which Linear has not"):
        wrapper.balanced.prepare(net, TASKS, max_epochs=1, total_steps=1, seed=0)


def test_a_model_whose_score_is_an_error_says_so_at_the_start() -> None:
    net = Net()
    net.kpi_metrics = {**Net.kpi_metrics, "velocity": ("mAVE",)}
    with pytest.raises(ValueError, match=r"tasks \['velocity'\] are errors"):
        make(net, "dtp")
    make(net, {"name": "dtp", "potentials": KPI, "lower_is_better": ("velocity",)})


@pytest.mark.parametrize("name", METHODS)
def test_state_goes_on_as_if_nothing_had_happened(name: str) -> None:
    whole, stopped = Net(), Net()
    once = make(whole, spec_of(name), clip_grad=dict(max_norm=5.0))
    first = make(stopped, spec_of(name), clip_grad=dict(max_norm=5.0))
    for seed in range(2):
        step(once, whole, batch(seed))
        step(first, stopped, batch(seed))
    second = make(stopped, spec_of(name), clip_grad=dict(max_norm=5.0))
    second.load_state_dict(first.state_dict())
    for wrapper, net in ((once, whole), (second, stopped)):
        step(wrapper, net, batch(2))
        wrapper.balanced.end_epoch()
        wrapper.balanced.begin_epoch(2)
        wrapper.balanced.update_kpis({f"score_{t}": value for t, value in KPI.items()}, step=3)
        step(wrapper, net, batch(3))
    for a, b in zip(whole.parameters(), stopped.parameters(), strict=True):
        assert torch.equal(a, b)

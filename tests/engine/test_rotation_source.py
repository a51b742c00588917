"""RotoGrad's update through the optimiser wrapper against gradients computed the slow way."""

import copy
from typing import Any

import pytest
import torch
import toy_world
from torch import Tensor, nn
from torch.testing import assert_close

from perception.balancing import RotoGrad, SharedFeatures, TaskLosses, build_balancer
from perception.engine import BalancedOptimWrapper
from tests.balancing.naive_rotograd import NaiveRotoGrad

TASKS = ("cls", "box", "seg", "depth")
GROUPS = {"det": ("cls", "box"), "seg": ("seg",), "depth": ("depth",)}
OPTIONS = {"lr": 0.05, "decay": 0.5, "burn_in": 2}
SPEC = {"name": "rotograd", **OPTIONS, "scales": {"box": 2.0}}
LR = 0.1


class Net(nn.Module):
    """Backbone → neck → encoder; heads read the encoder's vectors, an auxiliary one the neck's, two the backbone's."""

    task_names = TASKS
    task_groups = GROUPS
    shared_width = 4

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Linear(3, 6)
        self.neck = nn.Linear(6, 5)
        self.encoder = nn.Linear(5, 4)
        self.decoder = nn.Linear(4, 4)
        self.heads = nn.ModuleDict({task: nn.Linear(4, 2) for task in TASKS})
        self.auxiliary = nn.Linear(5, 2)
        self.shared_features = SharedFeatures()
        self.rotations: RotoGrad | None = None
        self.double()

    def trunk(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        low = self.backbone(x).tanh()
        middle = self.neck(low).tanh()
        return self.encoder(middle).tanh(), middle, low  # (B, n, 4), (B, n, 5), (B, n, 6)

    def read(self, features: Tensor, head: str) -> Tensor:
        return features if self.rotations is None else self.rotations.rotate(features, head)

    def outputs(self, reads: dict[str, Tensor], middle: Tensor, low: Tensor) -> dict[str, Tensor]:
        decoded = self.decoder(reads["det"]).tanh()
        out = {task: self.heads[task](decoded) for task in GROUPS["det"]}
        out["cls"] = out["cls"] + self.auxiliary(middle)  # around the rotated features
        out["seg"] = self.heads["seg"](reads["seg"]) + low[..., :2]  # around all of them
        out["depth"] = self.heads["depth"](reads["depth"])
        return out

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features, middle, low = self.trunk(x)
        features, middle = self.shared_features(features, middle)
        return self.outputs({head: self.read(features, head) for head in GROUPS}, middle, low)


def batch(seed: int, size: int = 3) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 5, 3, generator=generator, dtype=torch.float64)
    return x, {t: torch.randn(size, 5, 2, generator=generator, dtype=torch.float64) for t in TASKS}


def losses_of(outputs: dict[str, Tensor], targets: dict[str, Tensor], absent: tuple[str, ...] = ()) -> Any:
    return {t: (outputs[t] - targets[t]).square().mean() for t in TASKS if t not in absent}


def task_losses(net: Net, data: Any, absent: tuple[str, ...] = ()) -> TaskLosses:
    losses = losses_of(net(data[0]), data[1], absent)
    return TaskLosses(losses, {t: torch.tensor(float(len(data[0]))) for t in losses}, TASKS)


def prepared(spec: Any = SPEC) -> Net:
    return build_balancer(spec).prepare(Net())


def make(net: Net, spec: Any = SPEC, optimizer: Any = None, **options: Any) -> BalancedOptimWrapper:
    wrapper = BalancedOptimWrapper(
        optimizer or torch.optim.SGD(net.parameters(), lr=LR), balancer=spec, **options
    )
    wrapper.balanced.prepare(net, TASKS, max_epochs=24, total_steps=100, seed=3)
    wrapper.balanced.begin_epoch(1)
    return wrapper


def step(wrapper: BalancedOptimWrapper, net: Net, *parts: Any, absent: tuple[str, ...] = ()) -> None:
    for data in parts:
        with wrapper.optim_context(net):
            losses = task_losses(net, data, absent)
        wrapper.update_params(losses)


class Slow:
    """The same training by the chain rule, written out: no cut, the model's parts called one by one."""

    def __init__(self) -> None:
        self.net = Net()
        self.naive = NaiveRotoGrad(GROUPS, 4, **OPTIONS)

    def gradients(self, data: Any, absent: tuple[str, ...]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """One batch: parameter → update, head → gradient with respect to the rotated features."""
        net = self.net
        features, middle, low = net.trunk(data[0])
        reads = {head: features @ self.naive.rotation(head).T for head in GROUPS}
        losses = losses_of(net.outputs(reads, middle, low), data[1], absent)
        totals = {
            head: sum((2.0 if task == "box" else 1.0) * losses[task] for task in tasks if task in losses)
            for head, tasks in GROUPS.items()
            if any(task in losses for task in tasks)
        }
        rotated = {
            head: torch.autograd.grad(total, reads[head], retain_graph=True)[0].flatten(0, 1)
            for head, total in totals.items()
        }
        factors = self.naive.factors(rotated)
        update = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
        for name, parameter in net.named_parameters():
            is_trunk = name.split(".")[0] in ("backbone", "neck", "encoder")
            for head, total in totals.items():
                (found,) = torch.autograd.grad(total, parameter, retain_graph=True, allow_unused=True)
                if found is not None:
                    update[name] += (factors[head] if is_trunk else 1.0) * found
        return update, rotated

    def step(self, *parts: Any, absent: tuple[str, ...] = ()) -> None:
        """One update from all parts."""
        found = [self.gradients(data, absent) for data in parts]
        squares: dict[str, float] = {}
        directions: dict[str, Tensor] = {}
        for _, rotated in found:
            for head, grad in rotated.items():
                squares[head] = squares.get(head, 0.0) + float((grad / len(parts)).square().sum())
            for head, direction in self.naive.directions(rotated).items():
                directions[head] = directions.get(head, 0.0) + direction / len(parts)
        self.naive.apply({head: square**0.5 for head, square in squares.items()}, directions)
        with torch.no_grad():
            for name, parameter in self.net.named_parameters():
                parameter -= LR * sum(update[name] for update, _ in found) / len(parts)

    def assert_equals(self, net: Net) -> None:
        assert net.rotations is not None
        found = dict(net.named_parameters())
        for name, parameter in self.net.named_parameters():
            assert_close(found[name], parameter, rtol=1e-6, atol=1e-8, msg=name)
        for head, generator in self.naive.generators.items():
            assert_close(net.rotations.generators[head].data, generator, rtol=1e-6, atol=1e-8, msg=head)


ABSENT = [(), ("seg",), ("cls",), ("cls", "box"), ("seg", "depth"), ("cls", "box", "depth")]


@pytest.mark.parametrize("absent", ABSENT, ids=str)
def test_update_equals_the_slow_way(absent: tuple[str, ...]) -> None:
    """Partial labels in the second batch; the rotations are no longer the identity by then."""
    net, slow = prepared(), Slow()
    wrapper = make(net)
    for seed in range(4):
        lacking = absent if seed == 1 else ()
        step(wrapper, net, batch(seed), absent=lacking)
        slow.step(batch(seed), absent=lacking)
        slow.assert_equals(net)
        if seed == 2:
            wrapper.balanced.end_epoch()
            slow.naive.end_epoch()
            wrapper.balanced.begin_epoch(2)
    assert all(generator.abs().max() > 0.01 for generator in slow.naive.generators.values())


def test_a_lone_head_is_trained_plainly() -> None:
    net, plain = prepared(), Net()
    absent = ("cls", "box", "depth")
    step(make(net), net, batch(0), absent=absent)
    step(make(plain, "sum"), plain, batch(0), absent=absent)
    for name, parameter in plain.named_parameters():
        assert_close(dict(net.named_parameters())[name], parameter, msg=name)


def test_each_micro_batch_has_its_own_coefficients() -> None:
    net, slow = prepared(), Slow()
    wrapper = make(net, accumulative_counts=2)
    for seed in range(0, 8, 2):
        step(wrapper, net, batch(seed), batch(seed + 1))
        slow.step(batch(seed), batch(seed + 1))
        slow.assert_equals(net)
    assert wrapper.num_updates == net.rotations.num_steps == 4


def test_frozen_parameters_stay_and_the_rest_is_trained() -> None:
    net, slow = prepared(), Slow()
    for frozen in (net.backbone, net.decoder):
        frozen.requires_grad_(False)
    step(make(net), net, batch(0))
    slow.step(batch(0))
    initial = dict(Net().named_parameters())
    for name, parameter in slow.net.named_parameters():
        expected = initial[name] if name.split(".")[0] in ("backbone", "decoder") else parameter
        assert_close(dict(net.named_parameters())[name], expected, msg=name)
    for module in (net.neck, net.encoder):
        module.requires_grad_(False)
    before = net.encoder.weight.clone()
    step(make(net), net, batch(1))  # heads and rotations alone
    assert torch.equal(net.encoder.weight, before)


def test_no_other_optimiser_moves_the_rotations() -> None:
    """Weight decay and momentum of the model's own optimiser included."""
    net, slow = prepared(), Slow()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.0, weight_decay=0.5)
    for group in optimizer.param_groups:
        group["lr"] = 1e-12  # a step that would show in the rotations only by decay times a large state
    decay = torch.optim.SGD(net.parameters(), lr=1e-9, weight_decay=1e8)  # w ← 0.9 w, if it were allowed
    step(make(net, optimizer=optimizer), net, batch(0))
    slow.step(batch(0))
    for head, generator in slow.naive.generators.items():
        assert_close(net.rotations.generators[head].data, generator, rtol=1e-6, atol=1e-8)
    before = copy.deepcopy(net.rotations.state_dict())
    with net.shared_features.cut():
        sum(task_losses(net, batch(1)).values()).backward()
    decay.step()
    assert all(torch.equal(value, before[name]) for name, value in net.rotations.state_dict().items())


def frozen_state(net: Net, wrapper: BalancedOptimWrapper) -> str:
    return str((net.state_dict(), wrapper.balancer.rotations.training_state()))


def test_a_skipped_step_leaves_everything_as_it_was() -> None:
    net = prepared()
    wrapper = make(net)
    step(wrapper, net, batch(0))
    before = frozen_state(net, wrapper)
    for where in ("rotated", "behind", "around", "loss"):
        with wrapper.optim_context(net):
            losses = task_losses(net, batch(1))
        bad = {**losses, "seg": losses["seg"].clone()}
        if where == "rotated":
            bad["seg"].register_hook(lambda gradient: gradient * float("nan"))
        elif where == "behind":  # finite at the features
            bad["seg"] = bad["seg"] + (net.heads["seg"].bias.sum() * 0).sqrt()
        elif where == "around":
            bad["seg"] = bad["seg"] + (net.backbone.bias.sum() * 0).sqrt()
        else:
            bad["seg"] = bad["seg"] * float("nan")
        wrapper.update_params(TaskLosses(bad, losses.num_targets, TASKS))
        assert wrapper.last_step["non_finite"]["kind"] == ("loss" if where == "loss" else "gradient")
        if where in ("rotated", "loss"):
            assert wrapper.last_step["non_finite"]["tasks"] == ["seg"]
        assert frozen_state(net, wrapper) == before
    step(wrapper, net, batch(1))
    slow = Slow()
    slow.step(batch(0))
    slow.step(batch(1))
    slow.assert_equals(net)


def test_a_loss_scale_changes_nothing_and_an_overflow_is_skipped() -> None:
    """The net is float64, so fp16 is the loss scale alone, and a power of 2 rounds nothing."""
    nets = [prepared(), prepared()]
    plain, scaled = (
        make(net, precision="fp16", loss_scale={"init_scale": scale})
        for net, scale in zip(nets, (1.0, 2.0**10), strict=True)
    )
    for seed in range(2):
        for wrapper, net in ((plain, nets[0]), (scaled, nets[1])):
            step(wrapper, net, batch(seed))
    for (name, a), b in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(a, b), name
    assert plain.last_step["balance"] == scaled.last_step["balance"]
    before = frozen_state(nets[1], scaled)
    for is_scaled_down in (False, True):
        with scaled.optim_context(nets[1]):
            losses = task_losses(nets[1], batch(2))
        limited = {**losses, "seg": toy_world.Overflow.apply(losses["seg"], 600.0)}
        scaled.update_params(TaskLosses(limited, losses.num_targets, TASKS))
        assert ("overflow" in scaled.last_step) == (not is_scaled_down)
        assert (frozen_state(nets[1], scaled) == before) == (not is_scaled_down)


def test_state_goes_on_as_if_nothing_had_happened() -> None:
    whole, stopped = prepared(), prepared()
    once, first = make(whole), make(stopped)
    for seed in range(2):
        step(once, whole, batch(seed))
        step(first, stopped, batch(seed))
    second = make(stopped)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for wrapper, net in ((once, whole), (second, stopped)):
        step(wrapper, net, batch(2))
        wrapper.balanced.end_epoch()
        wrapper.balanced.begin_epoch(2)
        step(wrapper, net, batch(3))
    for a, b in zip(whole.parameters(), stopped.parameters(), strict=True):
        assert torch.equal(a, b)
    assert once.balancer.rotations.num_steps == second.balancer.rotations.num_steps == 4


def test_report_says_what_a_user_would_look_at() -> None:
    net = prepared()
    wrapper = make(net)
    step(wrapper, net, batch(0))
    step(wrapper, net, batch(1), absent=("depth",))
    report = wrapper.last_step["balance"]
    assert set(report["coefficients"]) == {"cls", "box", "seg"}
    assert report["coefficients"]["box"] == pytest.approx(2 * report["coefficients"]["cls"])
    assert set(report["grad_norms"]) == {"det", "seg"}
    assert set(report["cosines"]) == {"det/seg"}
    assert set(report["RotoGrad"]["angle"]) == set(GROUPS)
    assert all(0 < angle < 90 for angle in report["RotoGrad"]["angle"].values())
    assert report["RotoGrad"]["lr"] == OPTIONS["lr"]
    scaled = {
        head: report["coefficients"][tasks[0]] * report["grad_norms"][head]
        for head, tasks in GROUPS.items()
        if head in report["grad_norms"]
    }
    assert scaled["det"] == pytest.approx(scaled["seg"])  # the trunk gets gradients of one size


class Without(Net):
    """A head that does not read the features."""

    def outputs(self, reads: dict[str, Tensor], middle: Tensor, low: Tensor) -> dict[str, Tensor]:
        return {**super().outputs(reads, middle, low), "depth": low[..., :2] * 2}


class Unpassed(Net):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features, middle, low = self.trunk(x)
        return self.outputs({head: self.read(features, head) for head in GROUPS}, middle, low)


class Narrow(Net):
    shared_width = 5

    def read(self, features: Tensor, head: str) -> Tensor:
        return features


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Without, "the losses of 'depth' don't reach"),
        (Unpassed, "did not pass anything through"),
        (Narrow, r"is \(3, 5, 4\), but RotoGrad rotates vectors of shared_width = 5"),
    ],
)
def test_a_model_that_keeps_no_promise_is_refused(kind: Any, message: str) -> None:
    net = build_balancer(SPEC).prepare(kind())
    with pytest.raises(ValueError, match=message):
        step(make(net), net, batch(0))


def test_a_loss_that_has_no_graph_later_is_refused() -> None:
    net = prepared()
    wrapper = make(net)
    step(wrapper, net, batch(1))  # one without a graph from the start is refused before the source sees it
    with wrapper.optim_context(net):
        losses = task_losses(net, batch(0))
    loose = TaskLosses({**losses, "seg": losses["seg"].detach()}, losses.num_targets, TASKS)
    with pytest.raises(ValueError, match=r"tasks \['seg'\] are not connected"):
        wrapper.update_params(loose)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient_source": "features"}, "leave them out"),
        ({"interval": 2}, "interval=2"),
        ({"watch": {"gram_interval": 10}}, "watch.gram_interval=10"),
    ],
)
def test_options_that_do_not_go_with_it(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(prepared(), **options)


def test_the_run_must_be_known() -> None:
    net = prepared()
    wrapper = BalancedOptimWrapper(torch.optim.SGD(net.parameters(), lr=LR), balancer=SPEC)
    with pytest.raises(ValueError, match=r"call prepare\("):
        wrapper.update_params(task_losses(net, batch(0)))

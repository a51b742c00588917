"""Connection strength on a small network against the paper's equations, written with loops; its phases and checks."""

import copy
import json

import pytest
import torch
from torch import Tensor, nn

from perception.balancing.connection_strength import ConnectionStrength
from perception.balancing.connections import Connection
from perception.balancing.loss_weighting import ConstantWeights
from perception.balancing.task_copies import use_task
from tests.balancing.naive_projection import naive

GROUPS = {"det": ("cls", "box"), "seg": ("seg",)}


class Net(nn.Module):
    """Two convolutions with batch norms as a trunk, one linear head per task."""

    task_names = ("cls", "box", "seg")

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(2, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 5, 2, bias=False),
            nn.BatchNorm2d(5),
            nn.ReLU(inplace=True),
        )
        self.heads = nn.ModuleDict({task: nn.Linear(5, 3) for task in self.task_names})

    def forward(self, x: Tensor, tasks: tuple[str, ...] = task_names) -> dict[str, Tensor]:
        features = self.trunk(x).mean(dim=(2, 3))
        return {task: (self.heads[task](features) - i).square().mean() for i, task in enumerate(tasks)}


def _new(*, epochs: int = 10, seed: int = 0, **changes: object) -> ConnectionStrength:
    balancer = ConnectionStrength(**{"groups": GROUPS, **changes})
    balancer.setup(
        [task for tasks in balancer.plan for task in tasks[1]],
        max_epochs=epochs,
        total_steps=epochs,
        seed=seed,
    )
    return balancer


def _setup(
    groups: dict[str, tuple[str, ...]] = GROUPS, seed: int = 0
) -> tuple[ConnectionStrength, Net, Tensor]:
    torch.manual_seed(seed)
    balancer = _new(groups=groups, epochs=10, trunk=("trunk",))
    model = balancer.prepare(Net().double())
    images = torch.randn(6, 2, 7, 7, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    for index in (1, 4):
        for norm in model.trunk[index].values():
            norm.weight.data.add_(torch.rand(len(norm.weight), generator=generator, dtype=torch.float64))
            norm.running_var.add_(torch.rand(len(norm.weight), generator=generator, dtype=torch.float64))
    with balancer.watch(model), use_task(model, balancer.tasks[0]):
        model(images)
    return balancer, model, images


def _gradients(balancer: ConnectionStrength, model: Net, images: Tensor) -> dict[str, list[Tensor | None]]:
    named = dict(model.named_parameters())
    per_task = []
    for group, tasks in balancer.plan:
        with use_task(model, group):
            loss = sum(model(images, tasks).values())
        per_task.append(torch.autograd.grad(loss, list(named.values()), allow_unused=True))
    return {name: [grads[i] for grads in per_task] for i, name in enumerate(named)}


def _project(
    balancer: ConnectionStrength, model: nn.Module, grads: dict[str, list[Tensor | None]]
) -> dict[str, Tensor]:
    """Of whole parameters."""
    pieces = [(name, 0, parts) for name, parts in grads.items() if any(part is not None for part in parts)]
    found = balancer.project(model, pieces, _reached(balancer, grads))
    return {name: value for (name, _, _), value in zip(pieces, found, strict=True)}


def _reached(balancer: ConnectionStrength, grads: dict[str, list[Tensor | None]]) -> Tensor:
    return balancer.reached({name: [part is not None for part in parts] for name, parts in grads.items()})


def _naive_groups(weight: Tensor, norms: list[nn.BatchNorm2d]) -> list[int]:
    """Equations 4, 6, 7 and 10 with loops."""
    num_out, num_in, height, width = weight.shape
    strengths = []
    for norm in norms:
        raw, scale = [], norm.weight.detach()
        for p in range(num_out):
            s_p = 0.0
            for q in range(num_in):
                s_p += sum(float(weight[p, q, m, n]) ** 2 for m in range(height) for n in range(width)) / (
                    height * width
                )
            raw.append(float(scale[p]) ** 2 / (float(norm.running_var[p]) + norm.eps) * s_p)
        strengths.append([value / sum(raw) for value in raw])
    return [max(range(len(norms)), key=lambda i: strengths[i][p]) for p in range(num_out)]


@pytest.mark.parametrize("seed", range(5))
def test_the_second_phase_is_the_papers(seed: int) -> None:
    groups = GROUPS if seed % 2 else {"cls": ("cls",), "box": ("box",), "seg": ("seg",)}
    balancer, model, images = _setup(groups, seed)
    grads = _gradients(balancer, model, images)
    update = _project(balancer, model, grads)
    for conv, norm in (("trunk.0", "trunk.1"), ("trunk.3", "trunk.4")):
        layer = model.get_submodule(conv)
        norms = [model.get_submodule(norm)[task] for task in balancer.tasks]
        names = [f"{conv}.weight"] + ([f"{conv}.bias"] if layer.bias is not None else [])
        vectors = [[grads[name][j] for name in names] for j in range(len(norms))]
        expected = naive(vectors, _naive_groups(layer.weight.detach(), norms), len(norms))
        for name, value in zip(names, expected, strict=True):
            torch.testing.assert_close(update[name], value, rtol=1e-9, atol=1e-12)
    for name, parts in grads.items():
        given = [part for part in parts if part is not None]
        if "heads" in name or ".1." in name or ".4." in name:
            assert len(given) == 1
            assert torch.equal(update[name], given[0])


@pytest.mark.parametrize("seed", range(3))
def test_pieces_of_two_ranks_give_the_whole(seed: int) -> None:
    """Each rank has a half of every parameter, cut anywhere; their products are added before they project."""
    balancer, model, images = _setup(GROUPS, seed)
    grads = _gradients(balancer, model, images)
    whole = _project(balancer, model, grads)
    reported = balancer.report()
    reached = _reached(balancer, grads)
    cuts = {name: (5 * n + seed) % value.numel() for n, (name, value) in enumerate(whole.items())}
    halves = [[(name, 0, cut) for name, cut in cuts.items() if cut]]
    halves.append([(name, cut, whole[name].numel()) for name, cut in cuts.items()])
    ranks = [
        [
            (name, start, [None if part is None else part.flatten()[start:end] for part in grads[name]])
            for name, start, end in half
        ]
        for half in halves
    ]
    sums: list[Tensor] = []
    for rank in ranks:
        balancer.project(model, rank, reached, add=lambda products: sums.append(products) or products)
    found: dict[str, list[Tensor]] = {name: [] for name in whole}
    for rank in ranks:
        updates = balancer.project(model, rank, reached, add=lambda products: sums[0] + sums[1])
        for (name, _, _), update in zip(rank, updates, strict=True):
            found[name].append(update)
    assert balancer.report() == reported
    for name, value in whole.items():
        torch.testing.assert_close(torch.cat(found[name]), value.flatten(), rtol=1e-12, atol=1e-14)


def test_conflicts_change_the_update_in_these_tests() -> None:
    changed = 0
    for seed in range(5):
        balancer, model, images = _setup(GROUPS, seed)
        grads = _gradients(balancer, model, images)
        update = _project(balancer, model, grads)
        for name in ("trunk.0.weight", "trunk.3.weight"):
            changed += not torch.allclose(update[name], sum(grads[name]))
    assert changed >= 3


def test_an_absent_group_leaves_the_others_problem() -> None:
    three = {"cls": ("cls",), "box": ("box",), "seg": ("seg",)}
    balancer, model, images = _setup(three)
    grads = _gradients(balancer, model, images)
    without = {name: [parts[0], None, parts[2]] for name, parts in grads.items()}
    update = _project(balancer, model, without)

    other = ConnectionStrength(groups={"cls": ("cls",), "seg": ("seg",)})
    other._connections = balancer.connections
    expected = _project(other, model, {name: [parts[0], parts[2]] for name, parts in grads.items()})
    assert set(update) == set(expected)
    for name in update:
        torch.testing.assert_close(update[name], expected[name], rtol=1e-12, atol=0)


def test_one_present_group_keeps_its_gradient() -> None:
    balancer, model, images = _setup()
    grads = {name: [None, parts[1]] for name, parts in _gradients(balancer, model, images).items()}
    for name, value in _project(balancer, model, grads).items():
        assert torch.equal(value, grads[name][1])


def test_a_layer_that_a_task_does_not_reach_is_not_its() -> None:
    balancer, model, images = _setup()
    grads = _gradients(balancer, model, images)
    for part in ("weight", "bias"):
        grads[f"trunk.0.{part}"][0] = None
    reached = _reached(balancer, grads)
    assert reached.tolist() == [[False, True], [True, True]]
    groups = balancer.assign(model, reached).groups
    assert set(groups[0].tolist()) == {1}
    assert set(groups[1].tolist()) == {0, 1}


def test_ranks_pass_the_same_strengths() -> None:
    balancer, model, _ = _setup()
    flipped = [strength.flip(1) for strength in balancer.strengths(model)]
    present = torch.tensor([True, True])
    ours, others = balancer.assign(model, present), balancer.assign(model, present, strengths=flipped)
    assert all(torch.equal(a, 1 - b) for a, b in zip(ours.groups, others.groups, strict=True))


def test_equal_norms_give_no_groups_and_the_plain_sum() -> None:
    balancer = _new(trunk=("trunk",))
    model, images = balancer.prepare(Net().double()).eval(), torch.randn(4, 2, 7, 7, dtype=torch.float64)
    with balancer.watch(model), use_task(model, "det"):
        model(images)
    grads = _gradients(balancer, model, images)
    assert {
        int(task) for group in balancer.assign(model, _reached(balancer, grads)).groups for task in group
    } == {-1}
    for name, value in _project(balancer, model, grads).items():
        torch.testing.assert_close(value, sum(g for g in grads[name] if g is not None), rtol=0, atol=0)


def test_report() -> None:
    balancer, model, images = _setup()
    assert balancer.report() == {"phase": "sequential"}
    grads = _gradients(balancer, model, images)
    projection = balancer.assign(model, _reached(balancer, grads))
    products = projection.zero_products()
    for name, parts in grads.items():
        projection.add_products(products, name, parts)
    balancer.record(projection, products)
    report = balancer.report()
    assert sum(report["top_share"].values()) == pytest.approx(1)
    opposed = sum(
        bool(products[layer, i, j] < 0) for layer in range(2) for i in range(2) for j in range(2) if i != j
    )
    groups = [set(group.tolist()) for group in projection.groups]
    assert report["group_conflict_share"] == pytest.approx(opposed / sum(len(group) for group in groups))
    json.dumps(report)


def test_the_phase_is_drawn_as_in_the_paper() -> None:
    drawn = torch.zeros(5)
    for seed in range(400):
        balancer = _new(epochs=5, seed=seed)
        drawn += torch.tensor([balancer.draw_phase(epoch) == "sequential" for epoch in range(1, 6)])
    # P > e/E with probability 1 − e/E; four standard deviations of 400 draws are at most 0.1.
    torch.testing.assert_close(drawn / 400, torch.tensor([0.8, 0.6, 0.4, 0.2, 0.0]), rtol=0, atol=0.1)
    assert drawn[4] == 0


@pytest.mark.parametrize("phase", ["sequential", "grouped"])
def test_one_phase_only(phase: str) -> None:
    balancer = _new(epochs=6, phases=phase)
    assert {balancer.draw_phase(epoch) for epoch in range(1, 7)} == {phase}


def test_a_resume_draws_what_the_run_would_have() -> None:
    reference = _new(epochs=20, seed=7)
    whole = []
    for epoch in range(1, 21):
        reference.begin_epoch(epoch)
        whole.append(reference.phase)
    assert set(whole) == {"sequential", "grouped"}
    first = _new(epochs=20, seed=7)
    for epoch in range(1, 9):
        first.begin_epoch(epoch)
    state = first.state_dict()
    resumed = _new(epochs=20, seed=99)
    resumed.load_state_dict(copy.deepcopy(state))
    assert resumed.phase == whole[7]
    assert [resumed.draw_phase(epoch) for epoch in range(8, 21)] == whole[7:]
    assert all(isinstance(value, Tensor | int | str | list) for value in state.values())


def test_losses_are_weighted_and_scaled_before() -> None:
    balancer = _new(weighting=ConstantWeights({"cls": 2.0, "box": 1.0, "seg": 3.0}), scales={"seg": 0.5})
    present = torch.tensor([True, True, True])
    assert balancer.weigh(torch.ones(3), present).tolist() == [2.0, 1.0, 1.5]
    assert balancer.combine(torch.ones(3), present, None).tolist() == [1.0, 1.0, 1.0]


def test_the_first_phase_steps_once_per_entry() -> None:
    """The loop that `plan` describes: a task's step moves the trunk, its own norms and heads, and nothing else."""
    balancer, model, images = _setup()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1)
    for group, tasks in balancer.plan:
        before = copy.deepcopy(dict(model.named_parameters()))
        with use_task(model, group):
            sum(model(images, tasks).values()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
        others = [
            name for name in before if any(f".{other}." in name for other in balancer.tasks if other != group)
        ]
        heads = [name for name in before if "heads" in name and name.split(".")[1] not in tasks]
        assert not moved & {*others, *heads}
        assert {"trunk.0.weight", "trunk.3.weight", f"trunk.1.{group}.weight"} <= moved


def test_connections_and_plan() -> None:
    balancer, _, _ = _setup()
    assert balancer.connections == (Connection("trunk.0", "trunk.1"), Connection("trunk.3", "trunk.4"))
    assert balancer.plan == (("det", ("cls", "box")), ("seg", ("seg",)))
    assert balancer.needs_task_forwards
    assert not balancer.needs_gram


def _setup_with(task_names: tuple[str, ...]) -> None:
    ConnectionStrength(groups=GROUPS).setup(task_names, max_epochs=1, total_steps=1, seed=0)


def _watched(model: nn.Module, **changes: object) -> None:
    balancer = _new(**changes)
    converted = balancer.prepare(model)
    with balancer.watch(converted), use_task(converted, "det"):
        converted(torch.randn(2, 4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: _new(groups={"det": ("cls",)}), "at least two groups"),
        (lambda: _new(groups={"det": ("cls",), "seg": ("cls",)}), "more than one group"),
        (lambda: _new(groups={"det": ("cls",), "seg": ()}), "must be a sequence of task names"),
        (lambda: _new(groups={"det": ("cls",), "seg": "seg"}), "must be a sequence of task names"),
        (lambda: _new(groups={"det": ("cls",), "s.g": ("seg",)}), "can't name a module"),
        (lambda: _setup_with(("cls", "seg")), "unknown task 'box'"),
        (lambda: _setup_with(("cls", "box", "seg", "vel")), "are in no group"),
        (lambda: _new(phases="mix"), "phases must be one of"),
        (lambda: _new().draw_phase(0), "counted from 1"),
        (lambda: _new().draw_phase(11), r"1\.\.10"),
        (
            lambda: _new(groups={"det": ("cls", "boxes"), "seg": ("seg",)}).prepare(Net()),
            "Did you mean 'box'",
        ),
        (lambda: _new(groups={"det": ("cls",), "seg": ("seg",)}).prepare(Net()), "are in no group"),
        (lambda: _new(trunk=("backbone",)).prepare(Net()), "has no submodules"),
        (lambda: _new().prepare(nn.Sequential(nn.Linear(4, 4))), "found no norm"),
        (lambda: _new().prepare(nn.Sequential(nn.BatchNorm1d(4, affine=False))), "no trainable scale"),
        (lambda: _new().prepare(nn.BatchNorm1d(4).requires_grad_(False)), "no trainable scale"),
        (lambda: _new().prepare(nn.BatchNorm1d(4, track_running_stats=False)), "running variance"),
        (lambda: _new().prepare(nn.LayerNorm((2, 4))), "more than the channels"),
        (
            lambda: _watched(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))),
            r"layers 2 of the trunk",
        ),
        (lambda: _watched(nn.Sequential(nn.LayerNorm(4))), "Was a training forward"),
        (lambda: _new().watch(Net()).__enter__(), "no task-specific norm"),
        (
            lambda: _new(groups={"a": ("cls",), "b": ("seg",)}).watch(_new().prepare(Net())).__enter__(),
            "in this order",
        ),
        (lambda: _new().load_state_dict({"ema": 1}), "connection strength needs epoch"),
    ],
)
def test_bad_input_is_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_summed_layer_is_accepted() -> None:
    _watched(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2)), summed=("2",))


def test_strengths_before_a_forward_are_refused() -> None:
    with pytest.raises(RuntimeError, match="run one forward inside watch"):
        _ = _new().connections

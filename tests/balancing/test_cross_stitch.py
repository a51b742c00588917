"""Cross-stitch units and trunks against the direct formula."""

from collections.abc import Iterable

import pytest
import torch
from torch import nn

from perception.balancing.cross_stitch import CrossStitchUnit, StitchedCopies, stitch_trunk, stitch_units
from perception.balancing.task_norms import plain_model, plain_state_dict, spread_state_dict
from perception.balancing.task_streams import TaskStreams

TASKS = ("det", "seg", "vel")
MAPS = torch.ones(3, 4, 5, 5)


@pytest.mark.parametrize("channels", [None, 4])
@pytest.mark.parametrize("shape", [(2, 4), (2, 4, 3), (2, 4, 3, 5)])
def test_the_unit_is_the_papers_mixture(channels: int | None, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    unit = CrossStitchUnit(tasks=TASKS, channels=channels)
    nn.init.normal_(unit.cross_stitch_weights)
    maps = {task: torch.randn(shape) for task in TASKS}
    mixed = unit(maps)
    for i, task in enumerate(TASKS):
        for c in range(4):
            weights = unit.cross_stitch_weights[i, :, c if channels else 0]
            expected = sum(weights[j] * maps[other][:, c] for j, other in enumerate(TASKS))
            torch.testing.assert_close(mixed[task][:, c], expected)


def test_it_starts_as_a_convex_mixture() -> None:
    unit = CrossStitchUnit(tasks=TASKS, own=0.8)
    torch.testing.assert_close(unit.cross_stitch_weights.sum(dim=1), torch.ones(3, 1))
    torch.testing.assert_close(unit.cross_stitch_weights[..., 0].diagonal(), torch.full((3,), 0.8))


def test_gradcheck() -> None:
    unit = CrossStitchUnit(tasks=("det", "seg"), channels=2).double()
    maps = [torch.randn(1, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(
        lambda a, b, _: tuple(unit({"det": a, "seg": b}).values()), (*maps, unit.cross_stitch_weights)
    )


class Net(nn.Module):
    """Two stages, the second with two outputs, around a norm that is none."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Module()
        self.trunk.first = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU())
        self.trunk.norm = nn.BatchNorm2d(4)
        self.trunk.second = TwoLevels()
        self.trunk.blocks = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
        self.trunk.blocks_offset = nn.Identity()

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        trunk = self.trunk
        levels = trunk.second([trunk.norm(trunk.first(x))], scale=2.0)
        return [trunk.blocks[0](levels[0].flatten(2).transpose(1, 2)), levels[1]]


class Axes(nn.Module):
    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return first + second


class TwoLevels(nn.Module):
    num_outs = 2

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 3)])

    def forward(self, inputs: list[torch.Tensor], *, scale: float) -> tuple[torch.Tensor, ...]:
        return tuple(scale * conv(inputs[0]) for conv in self.convs)


STAGES = ("trunk.first", "trunk.second", "trunk.blocks.0")


def naive(
    nets: dict[str, Net], mixtures: dict[str, list[torch.Tensor]], x: torch.Tensor
) -> dict[str, list[torch.Tensor]]:
    """One plain network per task, mixed after each stage."""

    def mix(weights: torch.Tensor, maps: dict[str, torch.Tensor], axis: int) -> dict[str, torch.Tensor]:
        shape = [1] * maps["det"].dim()
        shape[axis] = -1
        return {
            task: sum(weights[i, j].reshape(shape) * maps[other] for j, other in enumerate(TASKS))
            for i, task in enumerate(TASKS)
        }

    first = mix(mixtures["trunk.first"][0], {t: net.trunk.first(x) for t, net in nets.items()}, 1)
    normed = {task: net.trunk.norm(first[task]) for task, net in nets.items()}
    levels = {task: [2 * conv(normed[task]) for conv in net.trunk.second.convs] for task, net in nets.items()}
    mixed = [
        mix(mixtures["trunk.second"][level], {task: levels[task][level] for task in TASKS}, 1)
        for level in (0, 1)
    ]
    tokens = {t: net.trunk.blocks[0](mixed[0][t].flatten(2).transpose(1, 2)) for t, net in nets.items()}
    tokens = mix(mixtures["trunk.blocks.0"][0], tokens, 2)
    return {task: [tokens[task], mixed[1][task]] for task in TASKS}


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("is_training", [False, True])
def test_a_stitched_trunk_is_plain_networks_in_step(is_training: bool, per_channel: bool) -> None:
    """Outputs, gradients and running statistics, in float64."""
    torch.manual_seed(0)
    net = Net().double()
    stitched = stitch_trunk(net, stages=STAGES, tasks=TASKS, own=0.6, per_channel=per_channel)
    with torch.no_grad():
        for parameter in stitched.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    stitched.train(is_training)
    state = {name: value.clone() for name, value in stitched.state_dict().items()}
    nets, mixtures = {}, {}
    for task in TASKS:
        nets[task] = Net().double().train(is_training)
        own = {name.replace(f".{task}", ""): value for name, value in state.items() if f".{task}." in name}
        nets[task].load_state_dict(own)
    for stage, units in stitch_units(stitched).items():
        mixtures[stage] = [unit.cross_stitch_weights.detach().clone().requires_grad_() for unit in units]
    assert {stage: len(found) for stage, found in mixtures.items()} == dict(
        zip(STAGES, (1, 2, 1), strict=True)
    )
    x = torch.randn(2, 2, 7, 6, dtype=torch.float64)
    found = stitched(torch.cat([x] * 3))
    expected = naive(nets, mixtures, x)
    for number, rows in enumerate(found):
        for task, part in zip(TASKS, rows.chunk(3), strict=True):
            torch.testing.assert_close(part, expected[task][number], rtol=1e-10, atol=1e-12)
    weights = {task: [torch.randn_like(value) for value in values] for task, values in expected.items()}
    sum((w * v).sum() for t in TASKS for w, v in zip(weights[t], expected[t], strict=True)).backward()
    joined = [torch.cat([weights[task][number] for task in TASKS]) for number in (0, 1)]
    sum((w * v).sum() for w, v in zip(joined, found, strict=True)).backward()
    after = stitched.state_dict()
    gradients = {name: parameter.grad for name, parameter in stitched.named_parameters()}
    for task, plain in nets.items():
        for name, parameter in plain.named_parameters():
            grad = gradients[_of(name, task, gradients)]
            assert (grad is None) == (parameter.grad is None)
            if grad is not None:
                torch.testing.assert_close(grad, parameter.grad, rtol=1e-9, atol=1e-11, msg=name)
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(after[_of(name, task, after)], value, rtol=1e-12, atol=1e-14)
    for stage, units in mixtures.items():
        for number, weight in enumerate(units):
            grad = gradients[f"{stage}.stitch.{number}.cross_stitch_weights"]
            torch.testing.assert_close(grad, weight.grad, rtol=1e-9, atol=1e-11)
            assert float(grad.abs().min()) > 0


def _of(name: str, task: str, names: Iterable[str]) -> str:
    """The task's copy of a plain network's parameter."""
    parts = name.split(".")
    candidates = (".".join([*parts[:i], task, *parts[i:]]) for i in range(len(parts)))
    return next(candidate for candidate in candidates if candidate in names)


def test_what_is_copied_and_what_is_not() -> None:
    stitched = stitch_trunk(Net(), stages=["trunk.second"], tasks=TASKS)
    names = {name for name, module in stitched.named_modules() if isinstance(module, StitchedCopies)}
    assert names == {
        "trunk.first",
        "trunk.norm",
        "trunk.second",
        "trunk.blocks.0",
        "trunk.blocks.1",
    }
    assert isinstance(stitched.trunk.blocks_offset, nn.Identity)


def test_it_starts_from_the_models_weights() -> None:
    torch.manual_seed(0)
    net = Net().eval()
    x = torch.randn(2, 2, 5, 5)
    stitched = stitch_trunk(net, stages=STAGES, tasks=TASKS, own=0.8)
    for rows, expected in zip(stitched(torch.cat([x] * 3)), net(x), strict=True):
        for part in rows.chunk(3):
            torch.testing.assert_close(part, expected)
    other = Net()
    stitched.load_state_dict(spread_state_dict(stitched, other.state_dict()))
    for rows, expected in zip(stitched(torch.cat([x] * 3)), other.eval()(x), strict=True):
        torch.testing.assert_close(rows.chunk(3)[2], expected)
    with pytest.raises(ValueError, match="run together and are mixed"):
        plain_model(stitched, "det")
    with pytest.raises(ValueError, match="run together and are mixed"):
        plain_state_dict(stitched, "det")


def test_maps_keep_their_memory_format() -> None:
    layer = StitchedCopies(layer=nn.Conv2d(4, 4, 1), tasks=("a", "b"), num_maps=1, channels=4)
    x = torch.randn(2, 4, 3, 3).contiguous(memory_format=torch.channels_last)
    assert layer(x).is_contiguous(memory_format=torch.channels_last)


def test_rows_of_streams() -> None:
    streams = TaskStreams()
    x = torch.arange(6.0).view(3, 2)
    assert streams.repeat({"x": x})["x"] is x
    assert streams.rows(x, "seg") is x
    assert streams.label(["t1", ""]) == ["t1", ""]
    streams.groups = {"a": ("cls", "box"), "b": ("seg",)}
    repeated = streams.repeat({"x": x})["x"]
    assert torch.equal(repeated, torch.cat([x, x]))
    marked = repeated + torch.tensor([0.0, 0, 0, 10, 10, 10])[:, None]
    assert torch.equal(streams.rows(marked, "box"), x)
    assert torch.equal(streams.rows(marked, "seg"), x + 10)
    assert streams.label(["t1", ""]) == ["a/t1", "", "b/t1", ""]


def _with_own_parameter() -> nn.Module:
    net = Net()
    net.trunk.embedding = nn.Parameter(torch.zeros(3))
    return net


def _stitch(**changes: object) -> nn.Module:
    return stitch_trunk(**{"model": Net(), "stages": STAGES, "tasks": TASKS, **changes})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CrossStitchUnit(tasks=("det",)), "at least two tasks"),
        (lambda: CrossStitchUnit(tasks=TASKS, own=1.5), r"own in 0\.\.1"),
        (lambda: CrossStitchUnit(tasks=TASKS)({"det": torch.ones(1, 1)}), "one map per task"),
        (
            lambda: CrossStitchUnit(tasks=("a", "b"))({"a": torch.ones(1, 1), "b": torch.ones(1, 2)}),
            "all of one shape",
        ),
        (
            lambda: CrossStitchUnit(tasks=TASKS, channels=3)({t: torch.ones(1, 4) for t in TASKS}),
            "3 channels",
        ),
        (lambda: _stitch(stages=()), "at least one module"),
        (lambda: _stitch(stages=["trunk.frist"]), "Did you mean 'trunk.first'"),
        (lambda: _stitch(stages=["trunk.blocks"]), "container without a forward"),
        (lambda: _stitch(model=_with_own_parameter()), "name 'trunk' instead"),
        (lambda: _stitch(stages=["trunk.second", "trunk.second.convs.0"]), "inside stage 'trunk.second'"),
        (lambda: _stitch(stages=["trunk.first"], trunk=["trunk.second"]), "not in the trunk"),
        (lambda: _stitch()(torch.ones(4, 2, 7, 6)), "rows of all 3 tasks"),
        (lambda: StitchedCopies(layer=Axes(), tasks=TASKS)(torch.ones(3, 1), torch.ones(1)), "rows of all 3"),
        (lambda: StitchedCopies(layer=TwoLevels(), tasks=TASKS, num_maps=3)([MAPS], scale=1.0), "num_outs"),
    ],
)
def test_bad_input_is_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()

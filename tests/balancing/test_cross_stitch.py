"""Cross-stitch units and trunks against the direct formula."""

import pytest
import torch
from torch import nn

from perception.balancing.cross_stitch import CrossStitchTrunk, CrossStitchUnit

TASKS = ("det", "seg", "vel")


@pytest.mark.parametrize("channels", [None, 4])
@pytest.mark.parametrize("shape", [(2, 4), (2, 4, 3), (2, 4, 3, 5)])
def test_the_unit_is_the_papers_mixture(channels: int | None, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    unit = CrossStitchUnit(tasks=TASKS, channels=channels)
    nn.init.normal_(unit.stitch)
    maps = {task: torch.randn(shape) for task in TASKS}
    mixed = unit(maps)
    for i, task in enumerate(TASKS):
        for c in range(4):
            weights = unit.stitch[i, :, c if channels else 0]
            expected = sum(weights[j] * maps[other][:, c] for j, other in enumerate(TASKS))
            torch.testing.assert_close(mixed[task][:, c], expected)


def test_it_starts_as_a_convex_mixture() -> None:
    unit = CrossStitchUnit(tasks=TASKS, own=0.8)
    torch.testing.assert_close(unit.stitch.sum(dim=1), torch.ones(3, 1))
    torch.testing.assert_close(unit.stitch[..., 0].diagonal(), torch.full((3,), 0.8))


def test_gradcheck() -> None:
    unit = CrossStitchUnit(tasks=("det", "seg"), channels=2).double()
    maps = [torch.randn(1, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(
        lambda a, b, _: tuple(unit({"det": a, "seg": b}).values()), (*maps, unit.stitch)
    )


def test_with_own_1_the_trunk_is_separate_networks() -> None:
    torch.manual_seed(0)
    stages = [nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU()), nn.Conv2d(3, 4, 1)]
    trunk = CrossStitchTrunk(stages=stages, tasks=TASKS, channels=(3, 4), own=1.0)
    x = torch.randn(1, 2, 5, 5)
    for value in trunk(x).values():
        torch.testing.assert_close(value, stages[1](stages[0](x)))
    trunk(x)["seg"].sum().backward()
    assert float(trunk.stages["det"][0][0].weight.grad.abs().sum()) == 0
    assert float(trunk.stages["seg"][0][0].weight.grad.abs().sum()) > 0
    assert stages[0][0].weight.grad is None


def test_the_mixture_reaches_every_tasks_trunk() -> None:
    trunk = CrossStitchTrunk(stages=[nn.Linear(2, 3), nn.Linear(3, 3)], tasks=TASKS)
    trunk(torch.randn(4, 2))["seg"].square().sum().backward()
    assert all(float(stages[0].weight.grad.abs().sum()) > 0 for stages in trunk.stages.values())


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
        (lambda: CrossStitchTrunk(stages=[], tasks=TASKS), "needs stages"),
        (lambda: CrossStitchTrunk(stages=[nn.ReLU()], tasks=TASKS, channels=(1, 2)), "one count per stage"),
    ],
)
def test_bad_input_is_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()

"""Losses that train nothing and one loss under two names are refused, whatever the method and the source."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from perception.balancing import TaskLosses
from perception.engine import BalancedOptimWrapper
from tests.engine.launching import launch
from tests.engine.test_gradient_sources import KPI, TASKS, Net, batch, make, step, task_losses

SETUPS: list[tuple[Any, dict[str, Any]]] = [
    ("sum", {}),
    ("sum", {"accumulative_counts": 2}),
    ("sum", {"precision": "fp16"}),
    ({"name": "amtl", "potentials": KPI}, {}),
    ("uncertainty", {}),
    ("graddrop", {}),
    ("pcgrad", {"precision": "fp16", "accumulative_counts": 2}),
    *(("pcgrad", {"gradient_source": source}) for source in ("parameters", "features", "last_layer")),
]
TWINS = "tasks 'cls' and 'box' have the same loss and the same gradient"
LOOSE = "task 'seg' is not connected to any trainable parameter"
BAD: dict[str, tuple[str, Callable[[TaskLosses], dict[str, Tensor]]]] = {
    "twin": (TWINS, lambda losses: {"box": losses["cls"] * 1.0}),
    "the very same": (TWINS, lambda losses: {"box": losses["cls"]}),
    "detached": (LOOSE, lambda losses: {"seg": losses["seg"].detach()}),
    "of another model": (LOOSE, lambda losses: {"seg": nn.Parameter(torch.ones(2)).double().square().sum()}),
}


def changed_losses(
    wrapper: BalancedOptimWrapper, net: Net, seed: int, change: Any, absent: tuple[str, ...] = ()
) -> TaskLosses:
    with wrapper.optim_context(net):
        losses = task_losses(net, batch(seed), absent)
    return TaskLosses({**losses, **change(losses)}, {t: torch.tensor(3.0) for t in TASKS}, TASKS)


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize(("spec", "options"), SETUPS, ids=str)
def test_refused_when_the_task_is_first_present(spec: Any, options: dict[str, Any], kind: str) -> None:
    message, change = BAD[kind]
    net = Net()
    wrapper = make(net, spec, **options)
    with pytest.raises(ValueError, match=message):
        wrapper.update_params(changed_losses(wrapper, net, 0, change))
    wrapper = make(net, spec, **options)
    task = "box" if message == TWINS else "seg"
    for seed in range(2):
        step(wrapper, net, batch(seed), absent=(task,))
    with pytest.raises(ValueError, match=message):
        wrapper.update_params(changed_losses(wrapper, net, 2, change))


def test_twins_that_were_only_seen_apart_are_refused_together() -> None:
    net = Net()
    wrapper = make(net, "sum")
    step(wrapper, net, batch(0), absent=("box",))
    step(wrapper, net, batch(1), absent=("cls",))
    with pytest.raises(ValueError, match=TWINS):
        wrapper.update_params(changed_losses(wrapper, net, 2, BAD["twin"][1]))


class CountedGradient(torch.autograd.Function):
    """The identity, which counts the backwards through it."""

    num_calls = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        CountedGradient.num_calls += 1
        return grad


@pytest.mark.parametrize(("is_equal", "expected"), [(False, [1, 1]), (True, [2, 1])])
def test_a_backward_is_spent_on_equal_losses_alone_and_once(is_equal: bool, expected: list[int]) -> None:
    """Two heads with one value, but other gradients: not twins."""
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    wrapper = BalancedOptimWrapper(torch.optim.SGD([weight], lr=0.0))
    counts = {"a": torch.tensor(1.0), "b": torch.tensor(1.0)}
    found = []
    for _ in range(2):
        CountedGradient.num_calls = 0
        first = CountedGradient.apply(weight)
        losses = {"a": first[0] * 2, "b": weight[1] * (1.0 if is_equal else 1.5)}
        wrapper.update_params(TaskLosses(losses, counts, ("a", "b")))
        found.append(CountedGradient.num_calls)
    assert found == expected


def test_losses_of_0_are_compared_when_they_have_a_gradient() -> None:
    """A hinge is 0 without a gradient in the first batch: nothing can be said of the two yet."""
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    wrapper = BalancedOptimWrapper(torch.optim.SGD([weight], lr=0.0))
    counts = {"a": torch.tensor(1.0), "b": torch.tensor(1.0)}
    for shift, is_refused in ((-9.0, False), (9.0, True)):
        loss = (weight.sum() + shift).relu()
        losses = TaskLosses({"a": loss, "b": loss * 1.0}, counts, ("a", "b"))
        if is_refused:
            with pytest.raises(ValueError, match="tasks 'a' and 'b' have the same loss"):
                wrapper.update_params(losses)
        else:
            wrapper.update_params(losses)


def test_an_overflow_decides_nothing() -> None:
    """With a loss scale that is too large the gradients of twins are not finite; they are compared again."""

    class Overflow(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return torch.where(grad.abs() > 10.0, torch.inf, grad)

    net = nn.Linear(2, 1)
    wrapper = BalancedOptimWrapper(
        torch.optim.SGD(net.parameters(), lr=0.0), precision="fp16", loss_scale={"init_scale": 16.0}
    )
    counts = {"a": torch.tensor(1.0), "b": torch.tensor(1.0)}

    def losses() -> TaskLosses:
        loss = net(torch.ones(3, 2)).square().mean()
        return TaskLosses({"a": Overflow.apply(loss), "b": Overflow.apply(loss)}, counts, ("a", "b"))

    wrapper.update_params(losses())
    assert wrapper.last_step["overflow"] == {"loss_scale": 16.0, "next_loss_scale": 8.0}
    with pytest.raises(ValueError, match="tasks 'a' and 'b' have the same loss"):
        wrapper.update_params(losses())


def test_a_head_that_only_reads_cut_features_is_connected() -> None:
    """Its loss reaches no parameter behind the cut, but the trunk before it; not where that is frozen."""
    for is_frozen in (False, True):
        net = Net()
        net.heads["seg"].requires_grad_(False)
        for part in (net.conv, net.trunk):
            part.requires_grad_(not is_frozen)
        wrapper = make(net, "pcgrad", gradient_source="features")
        if is_frozen:
            with pytest.raises(ValueError, match=LOOSE):
                step(wrapper, net, batch(0))
        else:
            step(wrapper, net, batch(0))
            assert wrapper.num_updates == 1


def test_two_ranks_refuse_alike_or_not_at_all(tmp_path: Path) -> None:
    """What is wrong on one rank alone is no fault of the global loss: the other ranks have another one."""
    kinds = ("twin on rank 0", "loose on rank 0", "twin", "loose")
    jobs: list[dict[str, Any]] = [
        {
            "job": "refuse",
            "work_dir": str(tmp_path / kind),
            "out": str(tmp_path / f"{kind}.said"),
            "changes": {
                "model__batch_norm": False,
                "train_dataloader__batch_size": 1,
                "train_dataloader__dataset__bad": {str(index): kind for index in range(10)},
            },
        }
        for kind in kinds
    ]
    launch(jobs)
    said = {kind: [(tmp_path / f"{kind}.said.{rank}").read_text() for rank in (0, 1)] for kind in kinds}
    assert said["twin on rank 0"] == said["loose on rank 0"] == ["", ""]
    for kind, message in (
        ("twin", "tasks 'det' and 'seg' have the same loss"),
        ("loose", "task 'seg' is not"),
    ):
        assert said[kind][0] == said[kind][1]
        assert message in said[kind][0]

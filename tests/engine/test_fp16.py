"""float16 with loss scaling, on a CPU: the same updates as in float32, and overflows that cost one step."""

from pathlib import Path
from typing import Any

import bev_world
import pytest
import torch
import toy_world
from torch import nn
from torch.testing import assert_close

from perception.balancing import TaskLosses
from perception.engine import BalancedOptimWrapper, PerceptionRunner, read_log
from tests.engine.test_gradient_sources import TASKS, Net, batch, make, step, task_losses

SOURCES = ("parameters", "features", "last_layer")


def single_batch(seed: int) -> Any:
    x, targets = batch(seed, size=8)
    return x.float(), {task: target.float() for task, target in targets.items()}


def micro_steps(wrapper: Any, net: Net, limits: list[float]) -> list[dict[str, Any]]:
    """One micro-step each; the first task's gradient overflows beyond the limit. Returns the log's part of each."""
    lines = []
    for number, limit in enumerate(limits):
        with wrapper.optim_context(net):
            losses = task_losses(net, batch(number))
        changed = {
            task: toy_world.Overflow.apply(losses[task], limit) if task == "cls" else losses[task]
            for task in TASKS
        }
        wrapper.update_params(TaskLosses(changed, losses.num_targets, TASKS))
        lines.append(wrapper.last_step)
    return lines


@pytest.mark.parametrize("name", ["sum", "pcgrad", "mclgs", "mgda"])
def test_as_in_fp32_to_float16_accuracy(name: str) -> None:
    nets = {precision: Net().float() for precision in ("fp32", "fp16")}
    wrappers = {
        "fp32": make(nets["fp32"], name),
        "fp16": make(nets["fp16"], name, precision="fp16", loss_scale={"init_scale": 1024.0}),
    }
    for seed in range(3):
        found = {p: step(wrappers[p], nets[p], single_batch(seed)) for p in nets}
        reports = {p: wrappers[p].last_step["balance"] for p in nets}
        for key, value in found["fp32"].items():
            assert_close(found["fp16"][key], value, rtol=0.02, atol=0.004, msg=key)
        assert_close(
            torch.tensor(list(reports["fp16"].get("coefficients", {}).values())),
            torch.tensor(list(reports["fp32"].get("coefficients", {}).values())),
            rtol=0.02,
            atol=0.004,
        )
        nets["fp16"].load_state_dict(nets["fp32"].state_dict())
    assert wrappers["fp16"].num_updates == 3
    assert nets["fp16"].trunk.weight.dtype == torch.float32


def test_small_gradients_survive() -> None:
    """What scaling is for: in float16 these gradients are zero without it."""
    moved = {}
    for scale in (1.0, 2.0**16):
        net = nn.Linear(4, 1, bias=False)
        torch.manual_seed(0)
        nn.init.normal_(net.weight)
        wrapper = BalancedOptimWrapper(
            torch.optim.SGD(net.parameters(), lr=1e8), precision="fp16", loss_scale={"init_scale": scale}
        )
        before = net.weight.detach().clone()
        with wrapper.optim_context(net):
            loss = (net(torch.ones(1, 4)) * 1e-4).float().sum() * 1e-5
        wrapper.update_params(TaskLosses({"det": loss}, {"det": torch.tensor(1.0)}, ("det",)))
        moved[scale] = before - net.weight.detach()
    assert moved[1.0].eq(0).all()
    assert_close(moved[2.0**16], torch.full((1, 4), 0.1), rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("accumulative_counts", [1, 2])
@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("sum", "parameters"),
        ("graddrop", "parameters"),
        *((name, source) for name in ("pcgrad", "mclgs", "mgda") for source in SOURCES),
    ],
)
def test_a_power_of_two_changes_no_bit(name: str, source: str, accumulative_counts: int) -> None:
    """In float64, which autocast leaves alone: forward and backward are the same, only the scale differs."""
    options: dict[str, Any] = {"accumulative_counts": accumulative_counts, "clip_grad": {"max_norm": 0.5}}
    if name not in ("sum", "graddrop"):
        options |= {"gradient_source": source, "interval": 2}
    results = {}
    for scale in (None, 1.0, 2.0**16):
        net = Net()
        scaled = {} if scale is None else {"precision": "fp16", "loss_scale": {"init_scale": scale}}
        wrapper = make(net, name, watch={"gram_interval": 2}, **options, **scaled)
        lines = micro_steps(wrapper, net, [float("inf")] * 4)
        kept = ("tasks", "grad_norm", "skipped", "balance")
        results[scale] = [[line.get(key) for key in kept] for line in lines], net.state_dict()
    toy_world.assert_same(results[None], results[1.0])
    toy_world.assert_same(results[None], results[2.0**16])


@pytest.mark.parametrize(
    ("name", "source"), [("sum", "parameters"), *(("pcgrad", source) for source in SOURCES)]
)
def test_an_overflow_is_skipped_and_backed_off(name: str, source: str) -> None:
    net = Net()
    wrapper = make(
        net, name, gradient_source=source, precision="fp16",
        loss_scale={"init_scale": 16.0, "growth_interval": 2}, max_bad_steps=1,
    )  # fmt: skip
    before = [p.detach().clone() for p in net.parameters()]
    lines = micro_steps(wrapper, net, [7.9, 7.9])
    assert [line["overflow"] for line in lines] == [
        {"loss_scale": 16.0, "next_loss_scale": 8.0},
        {"loss_scale": 8.0, "next_loss_scale": 4.0},
    ]
    for line in lines:
        assert (line["skipped"], line["grad_norm"]) == (True, None)
        assert "non_finite" not in line
        assert "balance" not in line
    toy_world.assert_same(before, [p.detach() for p in net.parameters()])
    assert (wrapper.num_updates, wrapper.num_bad_in_row, wrapper.num_skipped) == (0, 0, 2)
    lines = micro_steps(wrapper, net, [1e9, 1e9, 7.9])
    assert [line["loss_scale"] for line in lines] == [4.0, 4.0, 8.0]
    assert [line["skipped"] for line in lines] == [False, False, True]
    assert wrapper.num_updates == 2


@pytest.mark.parametrize("source", SOURCES)
def test_at_the_floor_an_overflow_is_a_bad_step(source: str) -> None:
    net = Net()
    wrapper = make(
        net,
        "pcgrad",
        gradient_source=source,
        precision="fp16",
        loss_scale={"init_scale": 4.0},
        max_bad_steps=2,
    )
    lines = micro_steps(wrapper, net, [0.0] * 3)
    assert [("overflow" in line, "non_finite" in line) for line in lines] == [(True, False)] * 2 + [
        (False, True)
    ]
    assert lines[2]["non_finite"]["tasks"] == ["cls"]
    assert lines[2]["non_finite"]["in_row"] == 1
    with pytest.raises(
        FloatingPointError, match=r"non-finite gradient in task cls.*lowest loss scale 1;.*2 in a row"
    ):
        micro_steps(wrapper, net, [0.0])


def test_in_a_window_one_overflow_drops_the_whole_and_counts_once() -> None:
    net = Net()
    wrapper = make(net, "mgda", gradient_source="last_layer", precision="fp16", accumulative_counts=3,
                   loss_scale={"init_scale": 16.0})  # fmt: skip
    before = [p.detach().clone() for p in net.parameters()]
    lines = micro_steps(wrapper, net, [1e9, 0.0, 0.0, 1e9, 1e9, 1e9])
    assert [line["loss_scale"] for line in lines] == [16.0, 16.0, 8.0, 8.0, 8.0, 8.0]
    assert ["overflow" in line for line in lines] == [False, True, False, False, False, False]
    assert (wrapper.num_updates, wrapper.scaler.num_overflows) == (1, 1)
    assert not torch.equal(before[0], net.conv.weight)


def test_a_loss_that_is_not_finite_is_no_overflow() -> None:
    net = Net()
    wrapper = make(net, "sum", precision="fp16")
    losses = task_losses(net, batch(0))
    wrapper.update_params(TaskLosses({**losses, "seg": losses["seg"] * torch.inf}, losses.num_targets, TASKS))
    assert wrapper.last_step["non_finite"]["kind"] == "loss"
    assert wrapper.loss_scale == 2.0**16
    assert wrapper.num_bad_in_row == 1


# The seg target is a squared norm: at 2 ** 22 its gradient overflows float16, and the scale comes down to a fit.
SCALED: dict[str, Any] = {
    "optim_wrapper__precision": "fp16",
    "optim_wrapper__loss_scale": {"init_scale": 2.0**22, "growth_interval": 3},
}


@pytest.mark.parametrize("balancer", ["sum", "pcgrad"])
def test_resume_is_exact(tmp_path: Path, balancer: str) -> None:
    changes = {
        **SCALED,
        "optim_wrapper__balancer": balancer,
        "train_cfg": {"by_epoch": False, "max_iters": 24},
    }
    PerceptionRunner.from_cfg(toy_world.config(tmp_path / "whole", **changes)).train()
    for part, stop in enumerate((5, 9, None)):
        cfg = toy_world.config(tmp_path / "parts", resume=part > 0, **changes)
        PerceptionRunner.from_cfg(cfg).train(stop_after=stop)
    whole, parts = (toy_world.fingerprint(tmp_path / name) for name in ("whole", "parts"))
    toy_world.assert_same(whole, parts)
    lines = [
        [line for line in read_log(tmp_path / name / "log.jsonl") if line["kind"] == "train"]
        for name in ("whole", "parts")
    ]
    scales = [line["loss_scale"] for line in lines[0]]
    assert scales == [line["loss_scale"] for line in lines[1]]
    assert max(scales[4:]) > min(scales)  # it grew again
    overflows = [line for line in lines[0] if "overflow" in line]
    assert 2 < len(overflows) < 20
    assert all(line["skipped"] for line in overflows)


def test_bevformer_finds_a_scale_and_trains(tmp_path: Path) -> None:
    """The real model at its smallest, on a CPU: what is skipped is skipped for an overflow, and most is not."""
    changes = {"optim_wrapper__precision": "fp16", "optim_wrapper__loss_scale": {"init_scale": 2048.0},
               "optim_wrapper__balancer": "pcgrad",
               "train_cfg": {"by_epoch": False, "max_iters": 4, "val_interval": 0}}  # fmt: skip
    runner = PerceptionRunner.from_cfg(bev_world.config(tmp_path, **changes))
    runner.train()
    lines = [line for line in read_log(tmp_path / "log.jsonl") if line["kind"] == "train"]
    assert all("non_finite" not in line for line in lines)
    assert runner.optim_wrapper.num_updates == sum(not line["skipped"] for line in lines) >= 2
    assert all(parameter.isfinite().all() for parameter in runner.bare_model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "bf16", "loss_scale": {}}, "which needs none"),
        (
            {"precision": "fp16", "loss_scale": {"scale": 4.0}},
            r"unknown keys \['scale'\]; allowed: .*'init_scale'",
        ),
        ({"precision": "fp16", "loss_scale": {"init_scale": -1.0}}, "allowed: 0 < min_scale <= init_scale"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(Net(), "sum", **options)

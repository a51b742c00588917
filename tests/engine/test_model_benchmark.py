"""`bench model` measures the training step as it is: nothing is changed, nothing is left out, nothing counts twice."""

import json
from pathlib import Path
from typing import Any

import bev_world
import pytest
import stream_world
import torch
import toy_world
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from perception.balancing.task_gradients import TaskGradients
from perception.config import ConfigError
from perception.engine import BalancedOptimWrapper, PerceptionRunner
from perception.engine.model_benchmark import benchmark_model
from perception.engine.part_timer import PartTimer
from perception.engine.step_meter import BatchHook, StepEndHook
from perception.engine.step_table import step_page
from perception.engine.timed_parts import ALL_TASKS, BACKWARD, LOSSES, Watch
from tests.models.small import GRID, small_model

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
TASKS = ["cls", "box", "velocity", "seg"]
AUXILIARY = {
    "model__center_heatmap": dict(type="CenterHeatmap", **GRID),
    "optim_wrapper__clip_grad": dict(max_norm=35.0),
}


def rows(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["part"]: row for row in result["breakdown"]["parts"]}


def check_sums(result: dict[str, Any]) -> None:
    """Nothing is negative, and the rows are the whole."""
    step = result["breakdown"]
    parts = rows(result)
    assert min(row["ms"] for row in step["parts"]) >= 0
    assert sum(row["ms"] for row in step["parts"]) == pytest.approx(step["ms_per_step"], abs=0.01)
    assert sum(row["share"] for row in step["parts"]) == pytest.approx(1.0, abs=1e-4)
    for kind in step["backward"].values():
        assert sum(row["ms"] for row in kind) == pytest.approx(
            parts["backward"]["ms"] if kind else 0.0, abs=0.01
        )


def calls(result: dict[str, Any]) -> dict[str, float | None]:
    return {part: row["calls"] for part, row in rows(result).items()}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of a training with the auxiliary loss on the BEV."""
    folder = tmp_path_factory.mktemp("bench")
    measured = benchmark_model(bev_world.config(folder, **AUXILIARY), num_steps=2, num_warmup=1)
    assert not list(folder.iterdir())  # the run folder was another one
    return measured


def test_parts_of_a_training_step(result: dict[str, Any]) -> None:
    check_sums(result)
    assert calls(result) == {
        "data loading (waiting)": 1,
        "to device, preprocessing": 1,
        "backbone, history": 1,
        "neck, history": 1,
        "encoder, history": 1,
        "backbone": 1,
        "neck": 1,
        "encoder": 1,
        "decoder": 2,
        "box head": 1,
        "segmentation head": 1,
        "auxiliary heads": 1,
        "matching": 1,
        "losses": 3,
        "backward": 1,
        "balancing": 2,
        "optimiser": 1,
        "rest": None,
    }
    assert all(row["ms"] > 0 for row in result["breakdown"]["parts"])
    backward = result["breakdown"]["backward"]
    assert [row["part"] for row in backward["by_task"]] == [ALL_TASKS]
    assert [row["part"] for row in backward["by_part"]] == [
        "backbone",
        "neck",
        "encoder",
        "decoder",
        "box head",
        "segmentation head",
        "auxiliary heads",
        "losses",
    ]
    assert result["batch_size"] == 1
    assert (result["num_steps"], result["num_warmup"], result["num_skipped"]) == (2, 1, 0)
    assert result["tasks"] == TASKS
    assert (result["balancer"], result["precision"], result["device"]) == ("sum", "fp32", "cpu")
    assert result["memory"]["peak_mib"] > result["memory"]["growth_mib"]
    assert result["samples_per_second"] == pytest.approx(1e3 / result["ms_per_step"], rel=1e-3)


@pytest.mark.parametrize("source", ["parameters", "features"])
def test_a_backward_per_task(tmp_path: Path, source: str) -> None:
    changes = {"optim_wrapper__balancer": "pcgrad", "optim_wrapper__gradient_source": source}
    result = benchmark_model(bev_world.config(tmp_path, **changes), num_steps=1, num_warmup=1)
    check_sums(result)
    by_task = {row["part"]: row["calls"] for row in result["breakdown"]["backward"]["by_task"]}
    trunk = (
        {} if source == "parameters" else {ALL_TASKS: 1}
    )  # the features' gradients through the trunk, once
    assert by_task == dict.fromkeys(TASKS, 1) | trunk
    assert rows(result)["backward"]["calls"] == 4 + len(trunk)
    assert result["balancer"] == "pcgrad"


def test_a_window_of_two_batches(tmp_path: Path) -> None:
    config = bev_world.config(tmp_path, optim_wrapper__accumulative_counts=2)
    result = benchmark_model(config, num_steps=1, num_warmup=1)
    assert result["num_steps"] == 2
    assert rows(result)["optimiser"]["calls"] == 0.5
    assert rows(result)["backward"]["calls"] == 1
    assert "2 batches per update" in step_page({**result, "config": "nano", "command": "perception bench"})


def test_streams_have_no_history_frames(tmp_path: Path) -> None:
    result = benchmark_model(stream_world.config(tmp_path), num_steps=1, num_warmup=1)
    check_sums(result)
    assert not any("history" in part for part in calls(result))
    assert calls(result)["encoder"] == 1
    assert result["batch_size"] == 2


def test_a_compiled_part_and_one_computed_again() -> None:
    """Compiled calls are timed from outside; what checkpointing repeats belongs to the backward."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.second, self.first(x), use_reentrant=False).sum()

    model = Net()
    model.first.compile(backend="eager")
    wrapper = BalancedOptimWrapper(torch.optim.SGD(model.parameters()))
    timer = PartTimer(torch.device("cpu"))
    watch = Watch(model, timer, optim_wrapper=wrapper)
    for _ in range(2):
        timer.begin_step()
        with watch.attached():
            model(torch.ones(2, 3)).backward()
        timer.end_step()
    assert timer.calls == {"first": 2, "second": 2, f"{BACKWARD}{LOSSES}": 2}
    assert {f"{BACKWARD}first", f"{BACKWARD}second"} <= set(timer.seconds)
    assert watch.backward_calls == {ALL_TASKS: 2}


def test_parts_of_a_prediction(tmp_path: Path) -> None:
    config = bev_world.config(tmp_path)
    result = benchmark_model(config, mode="predict", num_steps=2, num_warmup=1)  # 5 steps of 3 samples
    check_sums(result)
    found = calls(result)
    assert found["encoder"] == found["backbone"] == found["to device, preprocessing"] == 1
    assert found["decoding"] == 2
    assert found["data loading (waiting)"] == 1
    assert not set(found) & {"backward", "optimiser", "balancing", "losses", "encoder, history"}
    assert result["breakdown"]["backward"] == {"by_part": [], "by_task": []}


def test_another_model_has_parts_by_its_own_names(tmp_path: Path) -> None:
    result = benchmark_model(toy_world.config(tmp_path), num_steps=1, num_warmup=1, batch_size=3)
    check_sums(result)
    assert {"trunk", "det", "seg", "backward", "optimiser"} <= set(rows(result))
    assert result["batch_size"] == 3


PCGRAD = {"optim_wrapper__balancer": "pcgrad"}


@pytest.mark.parametrize(
    ("world", "changes"),
    [
        pytest.param(toy_world, {}, id="toy"),
        pytest.param(bev_world, {**AUXILIARY, **PCGRAD}, id="pcgrad"),
        *(
            pytest.param(bev_world, {**AUXILIARY, **changes}, id=name, marks=pytest.mark.slow)
            for name, changes in {
                "sum": {},
                "features": {**PCGRAD, "optim_wrapper__gradient_source": "features"},
                "rotograd": {"optim_wrapper__balancer": "rotograd"},
                "connection_strength": {"optim_wrapper__balancer": "connection_strength"},
            }.items()
        ),
    ],
)
def test_measuring_changes_nothing(tmp_path: Path, world: Any, changes: dict[str, Any]) -> None:
    """Bit by bit the weights, moments and log of a run that was not measured."""
    length = {"train_cfg": dict(by_epoch=False, max_iters=8, val_interval=0)}
    found = {}
    for name in ("plain", "measured"):
        runner = PerceptionRunner.from_cfg(world.config(tmp_path / name, **length, **changes))
        if name == "measured":
            step_end = StepEndHook(num_steps=1, num_warmup=1)
            runner.register_hook(step_end)
            runner.register_hook(BatchHook(step_end))
        runner.train(stop_after=3)
        found[name] = toy_world.fingerprint(tmp_path / name)
    assert step_end.meter is not None
    check_sums(step_end.meter.result())
    toy_world.assert_same(found["plain"], found["measured"])


def test_a_watch_leaves_no_trace() -> None:
    model = small_model()
    wrapper = BalancedOptimWrapper(torch.optim.SGD(model.parameters()))
    before = [torch.autograd.backward, torch.autograd.grad, TaskGradients.add]
    watch = Watch(model, PartTimer(torch.device("cpu")), optim_wrapper=wrapper)
    with watch.attached():
        assert "loss" in vars(model.box_head)
        assert torch.autograd.backward is not before[0]
    with pytest.raises(KeyError), watch.attached():
        raise KeyError
    assert [torch.autograd.backward, torch.autograd.grad, TaskGradients.add] == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not {"loss", "match", "parse_losses"} & {*vars(model), *vars(model.box_head)}
    assert not {"add_losses", "take_step"} & {*vars(wrapper)}
    assert "finish" not in vars(wrapper.balanced)


def test_the_page_has_all_rows(result: dict[str, Any]) -> None:
    page = step_page({**result, "config": "small", "command": "perception bench model small"})
    assert page.startswith("# small, training\n")
    for row in [*result["breakdown"]["parts"], *result["breakdown"]["backward"]["by_part"]]:
        assert f"| {row['part']} |" in page
    assert "| **step** |" in page
    assert "skipped" not in page
    assert "3 step(s) were not finite" in step_page({**result, "num_skipped": 3, "config": "", "command": ""})


def test_bad_input_is_refused_before_the_model_is_built(tmp_path: Path) -> None:
    config = bev_world.config(tmp_path, model=dict(type="NoModel"))
    with pytest.raises(ConfigError, match="mode is 'tran'; allowed: train, predict"):
        benchmark_model(config, mode="tran")  # type: ignore[arg-type]
    with pytest.raises(
        ConfigError, match=r"batch size is 7, but the data set of train_dataloader has 6 .*--batch-size 6"
    ):
        benchmark_model(config, batch_size=7)
    with pytest.raises(ConfigError, match="test_dataloader has 3"):
        benchmark_model(config, mode="predict", batch_size=4)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no CUDA device"):
            benchmark_model(config, device="cuda")


@pytest.mark.parametrize("path", sorted(RESULTS.glob("bench_*_*.json")), ids=lambda path: path.stem)
def test_committed_pages_are_those_of_their_results(path: Path) -> None:
    result = json.loads(path.read_text(encoding="utf-8"))
    assert path.with_suffix(".md").read_text(encoding="utf-8") == step_page(result)
    assert result["command"].endswith(f"--out docs/results/{path.name}")
    check_sums(result)

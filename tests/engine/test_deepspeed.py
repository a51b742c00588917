"""ZeRO over gloo: the same updates as one process on the joined batch, and an exact resume. One launch of two ranks.

`test_zero_methods` has all methods.
"""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_driver
import toy_world

from perception.engine import DDPStrategy, DeepSpeedStrategy, PerceptionRunner, read_log
from perception.engine.deepspeed_strategy import start_deepspeed
from perception.engine.sharded_weights import ShardedWeights
from perception.engine.strategies import has_ranks
from perception.engine.zero3_optimizer import Zero3Optimizer
from perception.engine.zero_optimizer import ZeroOptimizer
from tests.engine.launching import DRIVER, free_port, launch, needs_deepspeed

STAGES = (0, 1, 2, 3)
BALANCERS = ("sum", "pcgrad", "mgda", "dwa")
SEVERAL, ONE = 6, 1
LIMITS = {SEVERAL: 1e-4, ONE: 5e-6}
CASES = [
    *((balancer, stage, SEVERAL) for balancer in BALANCERS for stage in STAGES),
    *((balancer, stage, ONE) for balancer in BALANCERS[:3] for stage in (2, 3)),
]
WAYS: dict[str, dict[str, Any]] = {
    "bf16": {"optim_wrapper__precision": "bf16"},
    "accumulated": {"optim_wrapper__accumulative_counts": 2},
    "clipped": {"optim_wrapper__clip_grad": {"max_norm": 0.05}},
    "clipped by the largest": {"optim_wrapper__clip_grad": {"max_norm": 0.01, "norm_type": "inf"}},
    "reused": {"optim_wrapper__balancer": "mgda", "optim_wrapper__interval": 2},
    "sketched": {"optim_wrapper__balancer": "mgda", "optim_wrapper__sketch_size": 4096},
    "watched": {"optim_wrapper__watch": {"gram_interval": 2}},
    "fp16": {"optim_wrapper__precision": "fp16", "optim_wrapper__loss_scale": {"init_scale": 64.0}},
    "groups": {
        "optim_wrapper__paramwise_cfg": {
            "custom_keys": {"trunk": {"lr_mult": 0.1}, "seg": {"decay_mult": 0.0}}
        }
    },
}


FEW_LIVE = 20
"""Of the toy model's 80 weights; without a batch norm."""


def zero(stage: int, **options: Any) -> dict[str, Any]:
    few = {"max_live_parameters": FEW_LIVE} if stage == 3 else {}
    return {"strategy": {"type": "DeepSpeedStrategy", "zero_stage": stage, **few, **options}}


def steps(batch_size: int, num_steps: int, **changes: Any) -> dict[str, Any]:
    """Plain steps that don't depend on how a batch lies on ranks; each batch has both tasks, a rank's part may not."""
    return {
        "model__dropout": 0.0,
        "model__batch_norm": False,
        "train_dataloader__batch_size": batch_size,
        "train_dataloader__dataset__num_samples": 12,
        "train_dataloader__dataset__seg_every": 2,
        "train_cfg": dict(by_epoch=False, max_iters=num_steps, val_interval=0),
        "optim_wrapper__optimizer": {"type": "AdamW", "lr": 1e-2, "weight_decay": 0.1},
        "param_scheduler": None,
        **changes,
    }


TWELVE = {"train_dataloader__dataset__num_samples": 12}
UNEVEN = {"val_dataloader__dataset__num_samples": 11, "val_dataloader__dataset__num_scenes": 4}
SHARDING = (2, 3)
SHARDED = {"SGD": {"momentum": 0.9, "weight_decay": 0.1}, "AdamW": {"weight_decay": 0.1, "fused": True}}
PARTS = ("img_backbone.layer2", "bev_encoder.layers")
slow = pytest.mark.slow


def whole(stage: int, **changes: Any) -> dict[str, Any]:
    """With dropout, batch norms, schedules and evaluations; the ranks' numbers of these differ."""
    return {**TWELVE, **UNEVEN, "optim_wrapper__balancer": "pcgrad", **changes, **zero(stage)}


def bad(stage: int, balancer: str) -> dict[str, Any]:
    return whole(stage, train_dataloader__dataset__bad={"4": "grad"}, optim_wrapper__balancer=balancer)


def train_job(folder: Path, name: str, changes: dict[str, Any]) -> dict[str, Any]:
    return {"job": "train", "work_dir": f"{folder}/{name}", "changes": changes}


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the results of some two-rank jobs."""
    folder = tmp_path_factory.mktemp("few")
    jobs = [train_job(folder, f"whole{stage}", whole(stage)) for stage in (0, *SHARDING)]
    for stage in SHARDING:
        jobs += [
            {"job": "signal", "work_dir": f"{folder}/parts{stage}", "step": 4, "rank": 1,
             "number": int(signal.SIGTERM), "changes": whole(stage)},
            {**train_job(folder, f"parts{stage}", whole(stage)), "resume": True},
        ]  # fmt: skip
    jobs += [train_job(folder, "moved", {"stop_after": 3, **whole(2)})]
    jobs += [train_job(folder, "moved", {"stop_after": 7, "resume": True, **whole(3)})]
    jobs += [train_job(folder, "moved", {"resume": True, **whole(1)})]
    launch(jobs)
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the results of many two-rank jobs."""
    folder = tmp_path_factory.mktemp("zero")
    trained = {
        f"{balancer}{stage}_{count}": steps(2, count, optim_wrapper__balancer=balancer, **zero(stage))
        for balancer, stage, count in CASES
    }
    trained |= {
        f"{name}{stage}": steps(2, SEVERAL, **changes, **zero(stage))
        for name, changes in WAYS.items()
        for stage in SHARDING
    }
    trained |= {
        f"offloaded{stage}": steps(2, SEVERAL, **zero(stage, offload_optimizer=True)) for stage in SHARDING
    }
    trained |= {f"bad{stage}{name}": bad(stage, name) for stage in SHARDING for name in ("sum", "pcgrad")}
    jobs: list[dict[str, Any]] = [train_job(folder, name, changes) for name, changes in trained.items()]
    jobs += [
        *({"job": "shard", "kind": kind, "options": options, "stage": stage, "out": f"{folder}/{kind}{stage}"}
          for kind, options in SHARDED.items() for stage in SHARDING),
        *({"job": "changed_deepspeed", "stage": stage, "out": f"{folder}/changed{stage}"} for stage in SHARDING),
    ]  # fmt: skip
    launch(jobs, limit_s=300)
    return folder


def ends(work_dir: str | Path) -> list[dict[str, torch.Tensor]]:
    return [torch.load(f"{work_dir}.end{rank}", weights_only=True)["weights"] for rank in (0, 1)]


def train_one(folder: Path, **changes: Any) -> dict[str, torch.Tensor]:
    toy_driver.train(str(folder), **changes)
    return torch.load(f"{folder}.end0", weights_only=True)["weights"]


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return math.sqrt(sum(float((one[name] - other[name]).double().square().sum()) for name in one))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights that all runs start from."""
    resting = {"type": "SGD", "lr": 0.0}
    return train_one(tmp_path_factory.mktemp("start"), **steps(4, 1, optim_wrapper__optimizer=resting))


@slow
@needs_deepspeed
@pytest.mark.parametrize("count", LIMITS)
@pytest.mark.parametrize("balancer", BALANCERS)
def test_updates_equal_one_process_on_the_joined_batch(
    two: Path, start: dict[str, torch.Tensor], tmp_path: Path, balancer: str, count: int
) -> None:
    one = train_one(tmp_path / "one", **steps(4, count, optim_wrapper__balancer=balancer))
    for stage in [stage for name, stage, number in CASES if (name, number) == (balancer, count)]:
        first, second = ends(two / f"{balancer}{stage}_{count}")
        toy_world.assert_same(first, second)
        assert distance(first, one) <= LIMITS[count] * distance(one, start), stage
        assert torch.equal(first["unused.weight"], start["unused.weight"])  # not even decayed


@slow
@needs_deepspeed
@pytest.mark.parametrize("stage", SHARDING)
@pytest.mark.parametrize("name", [*WAYS, "offloaded"])
def test_ways_of_training_equal_one_process(
    two: Path, start: dict[str, torch.Tensor], tmp_path: Path, name: str, stage: int
) -> None:
    one = train_one(tmp_path / "one", **steps(4, SEVERAL, **WAYS.get(name, {})))
    first, second = ends(two / f"{name}{stage}")
    toy_world.assert_same(first, second)
    limit = 3e-2 if name in ("bf16", "fp16") else 1e-4
    assert distance(first, one) <= limit * distance(one, start)


@needs_deepspeed
@pytest.mark.parametrize("stage", SHARDING)
def test_sigterm_and_resume_are_exact(few: Path, stage: int) -> None:
    """F5 and F6: weights, moments, generators, evaluations and log are bit-equal."""
    for rank in (0, 1):
        assert Path(f"{few}/parts{stage}.exit{rank}").read_text() == "143 4"
    whole, parts = (toy_world.fingerprint(few / f"{name}{stage}") for name in ("whole", "parts"))
    assert len(whole["optimizer"]["state"]) == 10
    toy_world.assert_same(whole, parts)
    toy_world.assert_same(ends(few / f"whole{stage}"), ends(few / f"parts{stage}"))


@needs_deepspeed
def test_a_run_may_change_its_stage(few: Path) -> None:
    """Steps 1 to 3 under stage 2, to 7 under 3, the rest under 1; and all of it is what DDP does.

    But for a bias in front of a batch norm, whose gradient is rounding, and the mean that follows it. AdamW makes
    rounding large where a gradient is small, and sums over samples have it too.
    """
    runs = [toy_world.fingerprint(few / name) for name in ("whole0", "whole2", "whole3", "moved")]
    for found in runs[1:]:
        for key in ("model", "optimizer", "val", "log"):
            parts = (run[key]["state"] if key == "optimizer" else run[key] for run in (runs[0], found))
            one, other = (toy_world.as_tensors(part) for part in parts)
            # ZeRO has a state, of zeros, for what never had a gradient, DDP none.
            names = one.keys() - {"trunk.0.bias", "trunk.1.running_mean", "1" if key == "optimizer" else ""}
            one, other = ({name: side[name] for name in names} for side in (one, other))
            torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3 if key == "val" else 1e-4)


@needs_deepspeed
@pytest.mark.parametrize("stage", SHARDING)
def test_a_checkpoint_is_evaluated_without_deepspeed(few: Path, tmp_path: Path, stage: int) -> None:
    """One process on whole weights; the same numbers as the ranks' evaluation on sharded ones."""
    from perception.engine import evaluate

    metrics = evaluate(toy_world.config(tmp_path / "test", **TWELVE, **UNEVEN), few / f"whole{stage}")
    assert metrics == toy_world.fingerprint(few / f"whole{stage}")["val"][-1][1]


@slow
@needs_deepspeed
@pytest.mark.parametrize("balancer", ["sum", "pcgrad"])
@pytest.mark.parametrize("stage", SHARDING)
def test_a_bad_gradient_skips_the_step_on_both(two: Path, stage: int, balancer: str) -> None:
    folder = two / f"bad{stage}{balancer}"
    lines = [line for line in read_log(folder / "log.jsonl") if line["kind"] == "train"]
    skipped = [line for line in lines if line["skipped"]]
    assert len(lines) == 12
    assert 1 <= len(skipped) < 12
    for line in skipped:
        assert "sample4" in line["non_finite"]["sample_tokens"]
        assert line["non_finite"]["tasks"] == ["seg"]
        assert "seg.weight" in line["non_finite"]["parameters"]
    toy_world.assert_same(*ends(folder))


@slow
@needs_deepspeed
@pytest.mark.parametrize("kind", SHARDED)
@pytest.mark.parametrize("stage", SHARDING)
def test_the_sharded_optimiser_is_torchs(two: Path, stage: int, kind: str) -> None:
    first, second = (torch.load(f"{two}/{kind}{stage}.{rank}", weights_only=True) for rank in (0, 1))
    toy_world.assert_same(first["found"]["weights"], second["found"]["weights"])
    assert second["found"]["optimizer"]["state"] == {}  # the first rank has it all
    found, wanted = first["found"], first["wanted"]
    torch.testing.assert_close(found["weights"], wanted["weights"], rtol=1e-6, atol=1e-6)
    assert found["optimizer"]["param_groups"] == wanted["optimizer"]["param_groups"]
    for number, state in found["optimizer"]["state"].items():
        like = wanted["optimizer"]["state"].get(number)
        if like is None:  # never had a gradient
            assert all(not value.any() for key, value in state.items() if key != "step")
        else:
            torch.testing.assert_close(state, {key: like[key] for key in state}, rtol=1e-6, atol=1e-6)


@slow
@needs_deepspeed
@pytest.mark.parametrize("stage", SHARDING)
def test_a_deepspeed_that_computes_something_else_is_refused(two: Path, stage: int) -> None:
    for rank in (0, 1):
        message = Path(f"{two}/changed{stage}.{rank}").read_text()
        assert "off by" in message
        assert "Install deepspeed==0.19.8" in message


@slow
@needs_deepspeed
def test_activations_may_be_computed_again(tmp_path: Path) -> None:
    """Two steps of the small model by PCGrad, sharded and with recomputed parts, beside DDP that keeps them."""
    same = {
        "world": "bev",
        "optim_wrapper__balancer": "pcgrad",
        "train_cfg": dict(by_epoch=False, max_iters=2, val_interval=0),
    }
    ways: dict[str, dict[str, Any]] = {"kept": {}}
    for stage in SHARDING:
        ways[str(stage)] = {"model__activation_checkpointing": PARTS, **zero(stage)}
        ways[str(stage)]["strategy"]["max_live_parameters"] = 20_000
    launch([train_job(tmp_path, name, {**same, **changes}) for name, changes in ways.items()], limit_s=300)
    kept = ends(tmp_path / "kept")[0]
    for stage in SHARDING:
        found = ends(tmp_path / str(stage))[0]
        assert found.keys() == kept.keys()
        for name, value in kept.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=2e-6, msg=name)


@slow
@needs_deepspeed
def test_deepspeeds_own_launcher(tmp_path: Path) -> None:
    """On a host file that names this machine alone, for which it needs no ssh."""
    hosts = tmp_path / "hosts"
    hosts.write_text("localhost slots=2\n")
    jobs = [train_job(tmp_path, "run", steps(2, 2, optim_wrapper__balancer="pcgrad", **zero(3)))]
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(hosts), "--no_ssh_check"]
    options = ["--master_addr", "127.0.0.1", "--master_port", str(free_port()), "--no_local_rank"]
    env = {
        **os.environ,
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [*launcher, *options, str(DRIVER), json.dumps(jobs)]
    done = subprocess.run(command, env=env, cwd=tmp_path, timeout=300, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    one = train_one(tmp_path / "one", **steps(4, 2, optim_wrapper__balancer="pcgrad"))
    first, second = ends(tmp_path / "run")
    toy_world.assert_same(first, second)
    for name, value in one.items():
        torch.testing.assert_close(first[name], value, msg=name)


def test_stages_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="zero_stage is 7; allowed: 0, 1, 2, 3"):
        DeepSpeedStrategy(zero_stage=7, work_dir=str(tmp_path))
    with pytest.raises(ValueError, match="offload_optimizer needs zero_stage 1, 2 or 3"):
        DeepSpeedStrategy(zero_stage=0, offload_optimizer=True, work_dir=str(tmp_path))
    with pytest.raises(ValueError, match="max_live_parameters is 0; allowed: 1 or more"):
        DeepSpeedStrategy(zero_stage=3, max_live_parameters=0, work_dir=str(tmp_path))


def test_a_process_without_launcher_is_refused(tmp_path: Path) -> None:
    runner = PerceptionRunner.from_cfg(toy_world.config(tmp_path, **zero(2)))
    with pytest.raises(ValueError, match=r"no launcher started this process. Start it by .bash"):
        runner.train()


def test_a_launchers_only_process_is_a_rank_where_the_strategy_is_for_ranks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.delenv("RANK", raising=False)
    assert not has_ranks({"type": "DeepSpeedStrategy"})
    monkeypatch.setenv("RANK", "0")
    assert has_ranks({"type": "DeepSpeedStrategy"})
    assert not has_ranks({"type": "SingleStrategy"})
    assert not has_ranks(None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert has_ranks(None)


def test_a_missing_deepspeed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'perception-multitask\[deepspeed\]'"):
        start_deepspeed()


def test_what_cannot_be_sharded_is_refused() -> None:
    model = torch.nn.Linear(2, 1)

    def start(*_: Any) -> None:
        raise AssertionError("DeepSpeed must not be asked")

    with pytest.raises(TypeError, match="it takes Adam, AdamW, SGD, not LBFGS"):
        ZeroOptimizer(torch.optim.LBFGS(model.parameters()), model, start_engine=start)
    double = torch.nn.Linear(2, 1).double()
    with pytest.raises(ValueError, match="2 parameters are not float32, as weight"):
        ZeroOptimizer(torch.optim.SGD(double.parameters()), double, start_engine=start)
    frozen = torch.nn.Linear(2, 1).requires_grad_(False)
    with pytest.raises(ValueError, match="has no parameter that is trained"):
        ZeroOptimizer(torch.optim.SGD(frozen.parameters()), frozen, start_engine=start)
    compiled = torch.nn.Linear(2, 1)
    compiled.compile()
    optimizer = torch.optim.SGD(compiled.parameters())
    with pytest.raises(ValueError, match="Leave model.compiled out, or use strategy.zero_stage=2"):
        Zero3Optimizer(optimizer, compiled, start_engine=start, weights=ShardedWeights())


def test_the_command_line_takes_it_by_name() -> None:
    """MMEngine has strategies of the same names; ours is what runs, so ours is what is checked."""
    from perception.config.types import resolve_type

    assert resolve_type("DeepSpeedStrategy", "strategy.type") is DeepSpeedStrategy
    assert resolve_type("DDPStrategy", "strategy.type") is DDPStrategy
    assert resolve_type("mmengine.DDPStrategy", "strategy.type") is not DDPStrategy

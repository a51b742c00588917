"""ZeRO over gloo: the same updates as one process on the joined batch, and an exact resume. One launch of two ranks."""

import math
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_driver
import toy_world

from perception.engine import DDPStrategy, DeepSpeedStrategy, PerceptionRunner, read_log
from perception.engine.deepspeed_strategy import start_deepspeed
from perception.engine.zero_optimizer import ZeroOptimizer
from tests.engine.launching import launch, needs_deepspeed

STAGES = (0, 1, 2)
BALANCERS = ("sum", "pcgrad", "mgda", "dwa")
SEVERAL, ONE = 6, 1
LIMITS = {SEVERAL: 1e-4, ONE: 5e-6}
CASES = [
    *((balancer, stage, SEVERAL) for balancer in BALANCERS for stage in STAGES),
    *((balancer, 2, ONE) for balancer in BALANCERS[:3]),
]
WAYS: dict[str, dict[str, Any]] = {
    "bf16": {"optim_wrapper__precision": "bf16"},
    "accumulated": {"optim_wrapper__accumulative_counts": 2},
    "clipped": {"optim_wrapper__clip_grad": {"max_norm": 0.05}},
    "groups": {
        "optim_wrapper__paramwise_cfg": {
            "custom_keys": {"trunk": {"lr_mult": 0.1}, "seg": {"decay_mult": 0.0}}
        }
    },
}


def zero(stage: int, **options: Any) -> dict[str, Any]:
    return {"strategy": {"type": "DeepSpeedStrategy", "zero_stage": stage, **options}}


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


WHOLE = {"train_dataloader__dataset__num_samples": 12, **zero(2)}
BAD = {**WHOLE, "train_dataloader__dataset__bad": {"4": "grad"}}
SHARDED = {"SGD": {"momentum": 0.9, "weight_decay": 0.1}, "AdamW": {"weight_decay": 0.1, "fused": True}}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the results of all two-rank jobs."""
    folder = tmp_path_factory.mktemp("zero")
    trained = {
        f"{balancer}{stage}_{count}": steps(2, count, optim_wrapper__balancer=balancer, **zero(stage))
        for balancer, stage, count in CASES
    }
    trained |= {f"{name}2": steps(2, SEVERAL, **changes, **zero(2)) for name, changes in WAYS.items()}
    trained["offloaded2"] = steps(2, SEVERAL, **zero(2, offload_optimizer=True))
    trained |= {"whole": WHOLE, "bad": BAD}
    jobs: list[dict[str, Any]] = [
        {"job": "train", "work_dir": f"{folder}/{name}", "changes": changes}
        for name, changes in trained.items()
    ]
    jobs += [
        {"job": "signal", "work_dir": f"{folder}/parts", "step": 4, "rank": 1, "number": int(signal.SIGTERM),
         "changes": WHOLE},
        {"job": "train", "work_dir": f"{folder}/parts", "resume": True, "changes": WHOLE},
        *({"job": "shard", "kind": kind, "options": options, "out": f"{folder}/{kind}"}
          for kind, options in SHARDED.items()),
        {"job": "changed_deepspeed", "out": f"{folder}/changed"},
    ]  # fmt: skip
    launch(jobs)
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


@needs_deepspeed
@pytest.mark.parametrize("name", [*WAYS, "offloaded"])
def test_ways_of_training_equal_one_process(
    two: Path, start: dict[str, torch.Tensor], tmp_path: Path, name: str
) -> None:
    one = train_one(tmp_path / "one", **steps(4, SEVERAL, **WAYS.get(name, {})))
    first, second = ends(two / f"{name}2")
    toy_world.assert_same(first, second)
    limit = 3e-2 if name == "bf16" else 1e-4
    assert distance(first, one) <= limit * distance(one, start)


@needs_deepspeed
def test_sigterm_and_resume_are_exact(two: Path) -> None:
    """F5 and F6 under ZeRO-2: weights, moments, generators and log are bit-equal."""
    for rank in (0, 1):
        assert Path(f"{two}/parts.exit{rank}").read_text() == "143 4"
    whole, parts = (toy_world.fingerprint(two / name) for name in ("whole", "parts"))
    assert len(whole["optimizer"]["state"]) == 10
    toy_world.assert_same(whole, parts)
    toy_world.assert_same(ends(two / "whole"), ends(two / "parts"))


@needs_deepspeed
def test_a_checkpoint_is_evaluated_without_deepspeed(two: Path, tmp_path: Path) -> None:
    from perception.engine import evaluate

    cfg = toy_world.config(tmp_path / "test", **WHOLE)
    metrics = evaluate(cfg, two / "whole")
    assert metrics == toy_world.fingerprint(two / "whole")["val"][-1][1]


@needs_deepspeed
def test_a_bad_gradient_skips_the_step_on_both(two: Path) -> None:
    lines = [line for line in read_log(two / "bad" / "log.jsonl") if line["kind"] == "train"]
    skipped = [line for line in lines if line["skipped"]]
    assert len(lines) == 12
    assert 1 <= len(skipped) < 12
    assert all("sample4" in line["non_finite"]["sample_tokens"] for line in skipped)
    toy_world.assert_same(*ends(two / "bad"))


@needs_deepspeed
@pytest.mark.parametrize("kind", SHARDED)
def test_the_sharded_optimiser_is_torchs(two: Path, kind: str) -> None:
    first, second = (torch.load(f"{two}/{kind}.{rank}", weights_only=True) for rank in (0, 1))
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


@needs_deepspeed
def test_a_deepspeed_that_computes_something_else_is_refused(two: Path) -> None:
    for rank in (0, 1):
        message = Path(f"{two}/changed.{rank}").read_text()
        assert "off by" in message
        assert "Install deepspeed==0.19.8" in message


def test_stages_that_are_not_there(tmp_path: Path) -> None:
    for stage, message in ((3, "it would save next to nothing. Use zero_stage=2"), (7, "allowed: 0, 1, 2")):
        with pytest.raises(ValueError, match=message):
            DeepSpeedStrategy(zero_stage=stage, work_dir=str(tmp_path))
    with pytest.raises(ValueError, match="offload_optimizer needs zero_stage 1 or 2"):
        DeepSpeedStrategy(zero_stage=0, offload_optimizer=True, work_dir=str(tmp_path))


def test_one_process_is_refused(tmp_path: Path) -> None:
    runner = PerceptionRunner.from_cfg(toy_world.config(tmp_path, **zero(2)))
    with pytest.raises(ValueError, match=r"trains on several processes, but this is one. Start it by .bash"):
        runner.train()


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


def test_the_command_line_takes_it_by_name() -> None:
    """MMEngine has strategies of the same names; ours is what runs, so ours is what is checked."""
    from perception.config.types import resolve_type

    assert resolve_type("DeepSpeedStrategy", "strategy.type") is DeepSpeedStrategy
    assert resolve_type("DDPStrategy", "strategy.type") is DDPStrategy
    assert resolve_type("mmengine.DDPStrategy", "strategy.type") is not DDPStrategy

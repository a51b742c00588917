"""Two ranks over gloo in one launch: the same steps, evaluation, resume and signals as on one rank."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_driver
import toy_world

from perception.checkpoint import CheckpointError
from perception.engine import PerceptionRunner, read_log
from tests.engine.launching import launch

PLAIN = {"model__dropout": 0.0, "model__batch_norm": False, "randomness__seed": 3, "param_scheduler": None,
         "optim_wrapper__optimizer": None, "optim_wrapper__clip_grad": None}  # fmt: skip


def sgd(batch_size: int, **changes: Any) -> dict[str, Any]:
    return {**PLAIN, "optim_wrapper__optimizer": {"type": "SGD", "lr": 1.0}, "train_dataloader__batch_size": batch_size,
            **changes}  # fmt: skip


# Only every third sample has a seg target, so with one sample a rank some rank has none.
PARTIAL = {"train_dataloader__dataset__seg_every": 3}
UNEVEN = {"val_dataloader__dataset__num_samples": 11, "val_dataloader__dataset__num_scenes": 4}
TWELVE = {"train_dataloader__dataset__num_samples": 12}
BAD = {**TWELVE, "train_dataloader__dataset__bad": {"4": "loss"}}


FP16 = {
    **TWELVE,
    "train_dataloader__dataset__bad": {"4": "large"},
    "optim_wrapper__precision": "fp16",
    "optim_wrapper__loss_scale": {"init_scale": 1024.0},
}


BALANCERS = ("pcgrad", "mgda", "graddrop", "gradnorm", "geometric")
# In several buckets, and from sketches: those of two ranks add up to the joined batch's.
EXCHANGES: dict[str, dict[str, Any]] = {
    "buckets": {"optim_wrapper__balancer": "pcgrad", "optim_wrapper__bucket_mb": 1e-4},
    "sketch": {"optim_wrapper__balancer": "mgda", "optim_wrapper__sketch_size": 64},
}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the results of all two-rank jobs."""
    folder = tmp_path_factory.mktemp("two ranks")
    jobs: list[dict[str, Any]] = [
        {"job": "gradients", "work_dir": f"{folder}/g{size}", "out": f"{folder}/g{size}.pt",
         "changes": sgd(size // 2, **PARTIAL)}
        for size in (2, 4, 6)
    ]  # fmt: skip
    jobs += [
        {"job": "gradients", "work_dir": f"{folder}/b{name}", "out": f"{folder}/b{name}.pt",
         "changes": sgd(2, **PARTIAL, optim_wrapper__balancer=name)}
        for name in BALANCERS
    ]  # fmt: skip
    jobs += [
        {"job": "gradients", "work_dir": f"{folder}/x{name}", "out": f"{folder}/x{name}.pt",
         "changes": sgd(2, **PARTIAL, **changes)}
        for name, changes in EXCHANGES.items()
    ]  # fmt: skip
    jobs += [
        {"job": "evaluate", "work_dir": f"{folder}/e", "out": f"{folder}/eval", "changes": UNEVEN},
        {"job": "train", "work_dir": f"{folder}/whole", "changes": TWELVE},
        {
            "job": "signal",
            "work_dir": f"{folder}/parts",
            "step": 4,
            "rank": 1,
            "number": int(signal.SIGTERM),
            "changes": TWELVE,
        },
        {"job": "train", "work_dir": f"{folder}/parts", "resume": True, "changes": TWELVE},
        {"job": "train", "work_dir": f"{folder}/bad", "changes": BAD},
        *(
            {
                "job": "train",
                "work_dir": f"{folder}/fp16{name}",
                "changes": {**FP16, "optim_wrapper__balancer": name},
            }
            for name in ("sum", "pcgrad")
        ),
    ]
    launch(jobs)
    return folder


@pytest.mark.parametrize("name", BALANCERS)
def test_conflicts_are_those_of_the_joined_batch(two: Path, tmp_path: Path, name: str) -> None:
    toy_driver.gradients(
        tmp_path / "one", out=str(tmp_path / "one.pt"), **sgd(4, **PARTIAL, optim_wrapper__balancer=name)
    )
    one = torch.load(tmp_path / "one.pt", weights_only=True)
    other = torch.load(two / f"b{name}.pt", weights_only=True)
    for key, weight in one.items():
        torch.testing.assert_close(other[key], weight, rtol=5e-6, atol=5e-6, msg=key)


@pytest.mark.parametrize("name", EXCHANGES)
def test_ways_of_exchange_do_not_matter(two: Path, tmp_path: Path, name: str) -> None:
    toy_driver.gradients(
        tmp_path / "one", out=str(tmp_path / "one.pt"), **sgd(4, **PARTIAL, **EXCHANGES[name])
    )
    one = torch.load(tmp_path / "one.pt", weights_only=True)
    other = torch.load(two / f"x{name}.pt", weights_only=True)
    for key, weight in one.items():
        torch.testing.assert_close(other[key], weight, rtol=5e-6, atol=5e-6, msg=key)


@pytest.mark.parametrize("global_batch", [2, 4, 6])
def test_one_step_equals_one_rank_on_the_joined_batch(two: Path, tmp_path: Path, global_batch: int) -> None:
    toy_driver.gradients(tmp_path / "one", out=str(tmp_path / "one.pt"), **sgd(global_batch, **PARTIAL))
    one = torch.load(tmp_path / "one.pt", weights_only=True)
    other = torch.load(two / f"g{global_batch}.pt", weights_only=True)
    for name, weight in one.items():
        torch.testing.assert_close(other[name], weight, rtol=2e-6, atol=2e-6, msg=name)
    lines = [read_log(folder / "log.jsonl")[1] for folder in (tmp_path / "one", two / f"g{global_batch}")]
    assert lines[0]["tasks"] == pytest.approx(lines[1]["tasks"], rel=1e-6)


def test_evaluation_equals_one_rank_with_uneven_scenes(two: Path, tmp_path: Path) -> None:
    toy_driver.evaluate(tmp_path / "e", out=str(tmp_path / "eval"), **UNEVEN)
    one = json.loads((tmp_path / "eval.0").read_text())
    parts = [json.loads((two / f"eval.{rank}").read_text()) for rank in (0, 1)]
    assert parts[0]["metrics"] == parts[1]["metrics"] == one["metrics"]
    assert one["metrics"]["count"] == 11
    assert sorted(parts[0]["seen"] + parts[1]["seen"]) == sorted(one["seen"])
    assert len(parts[0]["seen"]) != len(parts[1]["seen"])


def test_sigterm_to_one_rank_stops_both_and_resume_is_exact(two: Path) -> None:
    """F6 and F5 on two ranks."""
    for rank in (0, 1):
        assert Path(f"{two}/parts.exit{rank}").read_text() == "143 4"
    toy_world.assert_same(toy_world.fingerprint(two / "whole"), toy_world.fingerprint(two / "parts"))
    events = [line for line in read_log(two / "parts" / "log.jsonl") if line["kind"] == "event"]
    assert [line["event"] for line in events] == ["start", "signal", "checkpoint", "resume", "checkpoint"]


def test_nan_on_one_rank_skips_the_step_on_both(two: Path) -> None:
    """F7: sample 4 is bad; each epoch has exactly one step with it, on one of the ranks."""
    lines = [line for line in read_log(two / "bad" / "log.jsonl") if line["kind"] == "train"]
    skipped = [line for line in lines if line["skipped"]]
    assert len(lines) == 12
    assert len(skipped) >= 3
    for line in skipped:
        assert line["non_finite"]["tasks"] == ["seg"]
        assert "sample4" in line["non_finite"]["sample_tokens"]
        assert len(line["non_finite"]["sample_tokens"]) == 4


@pytest.mark.parametrize("balancer", ["sum", "pcgrad"])
def test_an_overflow_on_one_rank_lowers_the_scale_on_both(two: Path, balancer: str) -> None:
    lines = [line for line in read_log(two / f"fp16{balancer}" / "log.jsonl") if line["kind"] == "train"]
    bad = [line for line in read_log(two / "bad" / "log.jsonl") if line.get("skipped")]
    overflows = [line for line in lines if "overflow" in line]
    assert 1 <= len(overflows) < len(lines)
    assert {line["step"] for line in overflows} <= {line["step"] for line in bad}  # those with sample 4
    assert all(line["skipped"] and "non_finite" not in line for line in overflows)
    assert lines[-1]["loss_scale"] < 1024
    first, second = (torch.load(f"{two}/fp16{balancer}.end{rank}", weights_only=True) for rank in (0, 1))
    assert first["loss_scaler"]["num_overflows"] == len(overflows)
    toy_world.assert_same(first, second)


def test_another_world_size_is_refused(two: Path) -> None:
    cfg = toy_world.config(two / "whole", resume=True, **TWELVE)
    with pytest.raises(CheckpointError, match="world_size is 2 in the checkpoint and 1 here"):
        PerceptionRunner.from_cfg(cfg).train()

"""Methods for groups of tasks on two ranks over gloo: the steps of one rank on the joined batch, an exact resume."""

from pathlib import Path
from typing import Any

import grouped_world
import pytest
import torch
import toy_world

from perception.checkpoint import load_checkpoint
from perception.engine import PerceptionRunner, read_log
from tests.engine.launching import launch

PHASES = ("sequential", "grouped")
# Layer norms: batch norms see each rank's part of the batch, so two ranks can't do what one does.
# Only every third sample has a segmentation target, so that some rank has none.
EQUAL = {
    "model__batch_norm": False,
    "train_dataloader__dataset__seg_every": 3,
    "train_dataloader__dataset__num_samples": 12,
    "train_cfg": {"by_epoch": False, "max_iters": 5, "val_interval": 0},
    "optim_wrapper__optimizer": {"type": "SGD", "lr": 0.02},
    "optim_wrapper__clip_grad": {"max_norm": 3.0},
    "optim_wrapper__bucket_mb": 5e-4,  # cuts through parameters
}
STITCH = {
    "name": "cross_stitch",
    "groups": grouped_world.GROUPS,
    "trunk": ["trunk"],
    "stages": ["trunk.1", "trunk.5"],
    "combination": "mgda",
}
# Recon's two runs; the second with a Gram matrix of all gradients, and without.
SPLIT = {"name": "recon", "groups": grouped_world.GROUPS, "trunk": ["trunk"], "layers": ["trunk.4"]}
RECON = {
    "scores": {"name": "recon_scores", "groups": grouped_world.GROUPS, "trunk": ["trunk"], "threshold": -0.2},
    "split": {**SPLIT, "scales": {"seg": 2.0}},
    "split-pcgrad": {**SPLIT, "combination": "pcgrad"},
}
# Batch norms, whose statistics differ between ranks until the end of a step; phases of both kinds.
MIXED = {
    "train_dataloader__dataset__num_samples": 12,
    "train_cfg": {"by_epoch": True, "max_epochs": 4, "val_interval": 2},
    "model__dropout": 0.3,
}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the results of all two-rank jobs."""
    folder = tmp_path_factory.mktemp("two ranks")
    jobs: list[dict[str, Any]] = [
        {
            "job": "train",
            "work_dir": f"{folder}/{phase}",
            "changes": {**EQUAL, "world": "grouped", "phases": phase},
        }
        for phase in PHASES
    ]
    jobs += [
        {"job": "train", "work_dir": f"{folder}/whole", "changes": {**MIXED, "world": "grouped"}},
        {
            "job": "train",
            "work_dir": f"{folder}/parts",
            "changes": {**MIXED, "world": "grouped", "stop_after": 4},
        },
        {
            "job": "train",
            "work_dir": f"{folder}/parts",
            "changes": {**MIXED, "world": "grouped", "resume": True},
        },
    ]
    for name, balancer in {"stitch": STITCH, **RECON}.items():
        changes = {**EQUAL, "world": "grouped", "balancer": balancer}
        jobs.append({"job": "train", "work_dir": f"{folder}/{name}", "changes": changes})
    launch(jobs)
    return folder


@pytest.mark.parametrize("phase", PHASES)
def test_steps_equal_one_rank_on_the_joined_batch(two: Path, tmp_path: Path, phase: str) -> None:
    changes = {**EQUAL, "phases": phase, "train_dataloader__batch_size": 4}
    PerceptionRunner.from_cfg(grouped_world.config(tmp_path / "one", **changes)).train()
    one, other = load_checkpoint(tmp_path / "one").model_state, load_checkpoint(two / phase).model_state
    for name, weight in one.items():
        torch.testing.assert_close(other[name], weight, rtol=1e-9, atol=1e-11, msg=name)
    logs = [
        [line for line in read_log(folder / "log.jsonl") if line["kind"] == "train"]
        for folder in (tmp_path / "one", two / phase)
    ]
    for first, second in zip(*logs, strict=True):
        assert first["tasks"] == pytest.approx(second["tasks"], rel=1e-9)
        assert first["balance"]["top_share"] == second["balance"]["top_share"]
    if phase == "grouped":
        assert any(line["balance"]["group_conflict_share"] for line in logs[0])


def test_cross_stitch_on_the_joined_batch(two: Path, tmp_path: Path) -> None:
    changes = {**EQUAL, "balancer": STITCH, "train_dataloader__batch_size": 4}
    PerceptionRunner.from_cfg(grouped_world.config(tmp_path / "one", **changes)).train()
    one, other = load_checkpoint(tmp_path / "one").model_state, load_checkpoint(two / "stitch").model_state
    assert sum("stitch" in name for name in one) == 2
    for name, weight in one.items():
        torch.testing.assert_close(other[name], weight, rtol=1e-6, atol=1e-8, msg=name)


@pytest.mark.parametrize("name", RECON)
def test_recon_on_the_joined_batch(two: Path, tmp_path: Path, name: str) -> None:
    changes = {**EQUAL, "balancer": RECON[name], "train_dataloader__batch_size": 4}
    PerceptionRunner.from_cfg(grouped_world.config(tmp_path / "one", **changes)).train()
    one, other = load_checkpoint(tmp_path / "one"), load_checkpoint(two / name)
    for key, weight in one.model_state.items():
        torch.testing.assert_close(other.model_state[key], weight, rtol=1e-9, atol=1e-11, msg=key)
    if name == "scores":
        scores = [
            part.optimizer_state["balancing"]["balancer"]["conflicts"]["scores"].tolist()
            for part in (one, other)
        ]
        assert scores[0] == scores[1]
        assert 0 < sum(scores[0]) < 5 * len(scores[0])


def test_resume_in_mid_epoch_is_exact(two: Path) -> None:
    toy_world.assert_same(toy_world.fingerprint(two / "whole"), toy_world.fingerprint(two / "parts"))
    lines = [line for line in read_log(two / "whole" / "log.jsonl") if line["kind"] == "train"]
    assert {line["balance"]["phase"] for line in lines} == set(PHASES)


def test_ranks_hold_the_same_statistics(two: Path) -> None:
    ranks = [torch.load(f"{two}/whole.statistics{rank}", weights_only=True) for rank in (0, 1)]
    assert len(ranks[0]) == 8  # two norms, two groups, mean and variance
    toy_world.assert_same(ranks[0], ranks[1])

"""The real model on two ranks: exact resume over batch norm and history, and a rank without a box."""

from pathlib import Path

import pytest
import torch
import toy_driver
import toy_world

from perception.engine import read_log
from tests.engine.launching import launch


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the results of all two-rank jobs."""
    folder = tmp_path_factory.mktemp("two ranks")
    parts = {
        "job": "train",
        "work_dir": f"{folder}/parts",
        "world": "bev",
        "changes": {"train_cfg__val_interval": 0},
    }
    launch(
        [
            {"job": "train", "work_dir": f"{folder}/whole", "world": "bev"},
            {**parts, "stop_after": 1},
            {**parts, "resume": True},
            {"job": "gradients", "work_dir": f"{folder}/step", "world": "bev", "out": f"{folder}/step.pt"},
        ]
    )
    return folder


def test_neither_resume_nor_evaluation_leaves_a_trace(two: Path) -> None:
    """Running statistics are part of the state, since history frames read them; one run evaluates and one does not."""
    whole, parts = toy_world.fingerprint(two / "whole"), toy_world.fingerprint(two / "parts")
    assert [step for step, _ in whole.pop("val")] == [2, 3]
    assert parts.pop("val") == []
    assert not (two / "parts" / "metrics.json").exists()
    # The balancer remembers which evaluation it was told last; the newest checkpoint is from before that of step 3.
    assert whole["optimizer"]["balancing"].pop("kpi_step") == 2
    assert parts["optimizer"]["balancing"].pop("kpi_step") == -1
    toy_world.assert_same(whole, parts)


@pytest.mark.parametrize("run", ["whole", "parts"])
def test_ranks_hold_the_same_statistics(two: Path, run: str) -> None:
    first, second = (torch.load(f"{two / run}.statistics{rank}", weights_only=True) for rank in (0, 1))
    assert any(not torch.equal(value, value.round()) for value in first.values())
    toy_world.assert_same(first, second)


def test_a_rank_without_boxes_counts_as_part_of_the_joined_batch(two: Path, tmp_path: Path) -> None:
    toy_driver.gradients(
        str(tmp_path / "one"), world="bev", out=str(tmp_path / "one.pt"), train_dataloader__batch_size=2
    )
    one = torch.load(tmp_path / "one.pt", weights_only=True)
    other = torch.load(two / "step.pt", weights_only=True)
    for name, weight in one.items():
        torch.testing.assert_close(other[name], weight, rtol=1e-5, atol=1e-5, msg=name)
    lines = [read_log(folder / "log.jsonl")[1] for folder in (tmp_path / "one", two / "step")]
    assert set(lines[0]["tasks"]) == {"cls", "box", "velocity"}
    assert lines[1]["tasks"] == pytest.approx(lines[0]["tasks"], rel=1e-5)
    assert lines[1]["grad_norm"] == pytest.approx(lines[0]["grad_norm"], rel=1e-4)

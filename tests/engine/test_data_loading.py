"""The run's seed reaches what datasets draw."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_world

from perception.datasets import NuScenesBEVDataset
from perception.engine import PerceptionRunner
from perception.engine.data_loading import build_dataloader


class Drawing:
    """A pipeline step that gives back what it draws; the history was drawn from the same generator before."""

    def __call__(self, results: dict[str, Any]) -> Any:
        return {"inputs": torch.tensor(results["rng"].random()), "data_samples": results["sample_idx"]}


def draws(root: Path, index: Path, run_seed: int, **own: Any) -> list[Any]:
    dataset = dict(
        type=NuScenesBEVDataset,
        ann_file=str(index / "v1.0-mini_mini_train.json"),
        data_root=str(root),
        pipeline=[Drawing()],
        queue_length=2,
        **own,
    )
    loader = build_dataloader(dict(dataset=dataset, batch_size=1), seed=run_seed)
    return [float(loader.dataset[item]["inputs"]) for item in range(4)]


def test_the_seed_reaches_augmentation_and_history(synthetic_root: Path, nano_index: Path) -> None:
    one, same, other = (draws(synthetic_root, nano_index, seed) for seed in (1, 1, 2))
    assert one == same
    assert not set(one) & set(other)
    assert draws(synthetic_root, nano_index, 2, seed=1) == one, "a seed in the config holds"


def test_a_dataset_without_a_seed_is_left_alone(tmp_path: Path) -> None:
    runner = PerceptionRunner.from_cfg(toy_world.config(tmp_path, randomness__seed=7))
    assert len(runner.build_dataloader(dict(dataset=dict(type=toy_world.ToyDataset)), seed=7).dataset) == 10


def test_negative_val_interval(tmp_path: Path) -> None:
    cfg = toy_world.config(tmp_path, train_cfg__val_interval=-1)
    with pytest.raises(
        ValueError, match=r"val_interval=-1; allowed: 1 or more, None .at the end only., 0 .never."
    ):
        PerceptionRunner.from_cfg(cfg).train()


def test_a_process_ends_with_workers_that_still_wait() -> None:
    """Workers let others' signals pass, yet leave when the main process ends them, as it does at its own end."""
    code = """
import multiprocessing, os, subprocess, time
from perception.engine.data_loading import build_dataloader
loader = build_dataloader(dict(dataset=list(range(100)), batch_size=1, num_workers=2, persistent_workers=True,
                               collate_fn=dict(type=list)), seed=0)
kept = iter(loader)
next(kept)
workers = [child.pid for child in multiprocessing.active_children()]
subprocess.run(["kill", "-TERM", *map(str, workers)], check=True)
time.sleep(0.5)
next(kept)
assert len(workers) == len(multiprocessing.active_children()) == 2
multiprocessing.active_children()[0].terminate()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], timeout=120, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 0

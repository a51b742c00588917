"""The image model on two ranks: a rank without a task's labels, terms with counts of their own, pseudo labels."""

from pathlib import Path
from typing import Any

import pytest
import torch
import toy_driver

from perception.engine import read_log
from tests.engine.launching import launch
from tests.models.images import image_config

pytestmark = pytest.mark.slow  # a minute for two processes
FIXED = {"norm_eval": True}  # nothing depends on which samples share a batch
WEIGHTS = {"label_weights": {"gt": 0.8, "pseudo": 0.2}, "task_weights": {"det": 1.7, "seg": 0.3}}
CASES: dict[str, dict[str, Any]] = {
    "disjoint": {"labels": ("det", "seg"), "balancer": "sum"},
    "one task": {"labels": ("seg", "none"), "balancer": "sum"},
    "no object": {"labels": ("both", "empty"), "balancer": "pcgrad"},
    "conflicts": {"labels": ("both", "both"), "balancer": "mclgs"},
    "by signs": {"labels": ("both", "det"), "balancer": "graddrop"},
    "pseudo": {"labels": ("gt-pseudo", "pseudo"), "balancer": "cagrad", "model": WEIGHTS},
}


def changes(case: dict[str, Any]) -> dict[str, Any]:
    model = image_config(**case.get("model", {}))
    model["img_backbone"] |= FIXED
    return {
        "model": model,
        "train_dataloader__dataset__labels": list(case["labels"]),
        "train_dataloader__dataset__repeats": 1,
        "val_dataloader": None,
        "val_evaluator": None,
        "val_cfg": None,
        "optim_wrapper__balancer": case["balancer"],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks with one sample each made of every case."""
    found = tmp_path_factory.mktemp("images")
    launch(
        [
            {"job": "image_step", "work_dir": f"{found}/{name}", "out": f"{found}/{name}.pt", "case": name}
            for name in CASES
        ]
    )
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_step_is_that_of_the_joined_batch(folder: Path, tmp_path: Path, name: str) -> None:
    toy_driver.image_step(str(tmp_path / "one"), out=str(tmp_path / "one.pt"), case=name, batch_size=2)
    one = torch.load(tmp_path / "one.pt.0", weights_only=True)
    first, second = (torch.load(folder / f"{name}.pt.{rank}", weights_only=True) for rank in (0, 1))
    for key, value in one.items():
        assert torch.equal(first[key], second[key]), key
        torch.testing.assert_close(first[key], value, rtol=1e-5, atol=1e-6, msg=key)
    lines = [read_log(path / "log.jsonl")[1] for path in (tmp_path / "one", folder / name)]
    assert lines[1]["tasks"] == pytest.approx(lines[0]["tasks"], rel=1e-5)
    assert lines[0]["grad_norm"] > 0.1
    assert lines[1]["grad_norm"] == pytest.approx(lines[0]["grad_norm"], rel=1e-4)

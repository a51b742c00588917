"""Official scores of the real model: two ranks give exactly what one gives."""

import json
from pathlib import Path

import pytest
import toy_driver

from perception.datasets import prepare
from perception.synthetic import synthesize
from tests.engine.launching import launch


@pytest.mark.slow
def test_scores_equal_one_rank(tmp_path: Path) -> None:
    """Two scenes of three frames; each rank evaluates one of them, in the order of time and with its history."""
    root, index = tmp_path / "nuscenes", tmp_path / "index"
    synthesize(root, num_scenes=3, seed=0, samples_per_scene=3)  # the first and the third are of mini_train
    prepare(root, out=index)
    overrides = [
        f"test_dataloader.dataset.data_root={root}",
        f"test_dataloader.dataset.ann_file={index / 'v1.0-mini_mini_train.json'}",
        "test_dataloader.dataset.pipeline.-2.cache_dir=null",
        "test_dataloader.num_workers=0",
        f"test_evaluator.0.data_root={root}",
        "test_evaluator.0.eval_set=mini_train",
    ]
    launch(
        [
            {
                "job": "score",
                "work_dir": f"{tmp_path}/two",
                "out": f"{tmp_path}/two_out",
                "overrides": overrides,
            }
        ]
    )
    toy_driver.score(str(tmp_path / "one"), out=str(tmp_path / "one_out"), overrides=overrides)
    one = json.loads((tmp_path / "one_out.0").read_text())
    assert one.keys() >= {"NDS", "mIoU"}
    assert one["mIoU"] > 0
    for rank in (0, 1):
        assert json.loads((tmp_path / f"two_out.{rank}").read_text()) == one
    boxes = [
        json.loads((tmp_path / name / "results_nusc.json").read_text())["results"]
        for name in ("one_out.boxes", "two_out.boxes")
    ]
    assert len(boxes[0]) == 6
    assert sum(map(len, boxes[0].values())) > 100
    assert boxes[0] == boxes[1]

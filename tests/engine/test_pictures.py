"""What drawing leaves in the run folder, and where it takes its data from."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.config import Config
from mmengine.structures import InstanceData

from perception.engine.evaluation_parts import evaluation_parts
from perception.engine.pictures import boxes_of, list_pictures


def test_pictures_are_listed_relative_to_the_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "summary.json").write_text(json.dumps({"mIoU": 0.5, "pictures": ["old.jpg"]}))
    list_pictures(
        run, [run / "pictures" / "a.jpg", tmp_path / "b.jpg", run / "pictures" / "predictions.json"]
    )
    assert json.loads((run / "summary.json").read_text()) == {
        "mIoU": 0.5,
        "pictures": ["pictures/a.jpg", "../b.jpg"],
    }


def test_validation_stands_in_for_a_missing_test_loader() -> None:
    val = {"val_dataloader": {"batch_size": 1}, "val_evaluator": {"type": "a"}}
    assert evaluation_parts(Config(val)) == ({"batch_size": 1}, {"type": "a"})
    both = {**val, "test_dataloader": {"batch_size": 2}, "test_evaluator": {"type": "b"}}
    assert evaluation_parts(Config(both)) == ({"batch_size": 2}, {"type": "b"})
    with pytest.raises(ValueError, match="neither test_dataloader nor val_dataloader"):
        evaluation_parts(Config({"val_dataloader": None}))


def test_boxes_that_are_not_finite_are_not_drawn() -> None:
    boxes = torch.ones(3, 9)
    boxes[1, 4] = torch.inf
    found = InstanceData(
        bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9), scores_3d=torch.ones(3), labels_3d=torch.arange(3)
    )
    drawn, labels, scores = boxes_of(Det3DDataSample(pred_instances_3d=found))
    assert np.isfinite(drawn).all()
    assert labels.tolist() == [0, 2]
    assert scores.tolist() == [1, 1]

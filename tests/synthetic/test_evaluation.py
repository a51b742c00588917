"""Ground truth given back as predictions scores high under the official evaluator."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.evaluate import DetectionEval
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.nuscenes import NuScenes


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")
def test_ground_truth_as_predictions(nusc: NuScenes, tmp_path: Path) -> None:
    results: dict[str, list[dict]] = {}
    scene = nusc.get("scene", next(s["token"] for s in nusc.scene if s["name"] == "scene-0103"))
    for sample in (s for s in nusc.sample if s["scene_token"] == scene["token"]):
        boxes = results.setdefault(sample["token"], [])
        for token in sample["anns"]:
            row = nusc.get("sample_annotation", token)
            if row["num_lidar_pts"] == 0:
                continue  # the evaluator drops these from the ground truth but not from predictions
            attribute = [nusc.get("attribute", a)["name"] for a in row["attribute_tokens"]]
            boxes.append(
                {
                    "sample_token": sample["token"],
                    "translation": row["translation"],
                    "size": row["size"],
                    "rotation": row["rotation"],
                    "velocity": np.nan_to_num(nusc.box_velocity(token)[:2]).tolist(),
                    "detection_name": category_to_detection_name(row["category_name"]),
                    "detection_score": 0.9,
                    "attribute_name": attribute[0] if attribute else "",
                }
            )
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"meta": {}, "results": results}))
    evaluation = DetectionEval(
        nusc, config_factory("detection_cvpr_2019"), str(path), "mini_val", str(tmp_path), verbose=False
    )
    metrics, _ = evaluation.evaluate()
    present = {box.detection_name for boxes in evaluation.gt_boxes.boxes.values() for box in boxes}
    assert len(present) >= 7  # four samples of one scene: not all classes are near enough to count
    for name, average_precision in metrics.mean_dist_aps.items():
        assert average_precision == pytest.approx(1.0 if name in present else 0.0), name
    for name in present:
        errors = metrics._label_tp_errors[name]
        assert errors["trans_err"] == pytest.approx(0.0, abs=1e-6)
        assert errors["scale_err"] == pytest.approx(0.0, abs=1e-6)

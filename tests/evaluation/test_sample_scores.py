"""Scores of single samples: against brute force and the metrics themselves, and only when asked for."""

import itertools
import json

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData, PixelData

from perception.evaluation import (
    BEVSegMetric,
    BoxAPMetric,
    NuScenesDetectionMetric,
    SemSegMetric,
    encode_mask,
)
from perception.evaluation.sample_precision import sample_precision
from perception.structures import BDD_BOX_CLASSES


def brute_force(centres, scores, true_centres, limit):
    """Average precision of one class at one distance, by loops."""
    taken, hits, total = set(), 0, 0.0
    for rank, index in enumerate(np.argsort(-scores, kind="stable"), start=1):
        gaps = [
            (np.hypot(*(centres[index] - true_centres[m])), m)
            for m in range(len(true_centres))
            if m not in taken
        ]
        if gaps and min(gaps)[0] < limit:
            taken.add(min(gaps)[1])
            hits += 1
            total += hits / rank
    return total / len(true_centres)


@pytest.mark.parametrize("seed", range(5))
def test_precision_is_that_of_plain_loops(seed):
    rng = np.random.default_rng(seed)
    centres, true_centres = rng.uniform(0, 8, (40, 2)), rng.uniform(0, 8, (12, 2))
    labels, true_labels = rng.integers(0, 4, 40), rng.integers(0, 3, 12)
    scores = rng.random(40)
    found = sample_precision(centres, scores, labels, true_centres, true_labels, distances=(0.5, 2.0))
    expected = [
        brute_force(centres[labels == k], scores[labels == k], true_centres[true_labels == k], limit)
        for k, limit in itertools.product(np.unique(true_labels), (0.5, 2.0))
    ]
    assert found == pytest.approx(np.mean(expected))


def test_perfect_empty_and_absent():
    truth, labels = np.array([[0.0, 0.0], [5.0, 5.0]]), np.array(["car", "bus"])
    assert sample_precision(truth, np.ones(2), labels, truth, labels) == 1.0
    nothing = np.zeros((0, 2)), np.zeros(0), np.zeros(0, dtype=np.str_)
    assert sample_precision(*nothing, truth, labels) == 0.0
    assert sample_precision(truth, np.ones(2), labels, nothing[0], nothing[2]) is None


def test_a_map_metric_scores_its_samples_when_asked():
    maps = torch.randint(0, 4, (3, 2, 1, 20, 30), generator=torch.Generator().manual_seed(0))
    maps[1, 0] = maps[1, 1]
    samples = [
        {
            "sample_token": f"t{i}",
            "gt_bev_seg": {"sem_seg": maps[i, 0]},
            "pred_bev_seg": {"sem_seg": maps[i, 1]},
        }
        for i in range(3)
    ]
    metric = BEVSegMetric()
    metric.process(None, samples)
    metric.evaluate(size=3)
    assert metric.sample_scores == {}
    metric.keeps_sample_scores = True
    metric.process(None, samples)
    metric.evaluate(size=3)
    assert metric.sample_scores["t1"] == {"mIoU": 1.0}
    for index in (0, 2):
        alone = BEVSegMetric()
        alone.process(None, [samples[index]])
        assert metric.sample_scores[f"t{index}"]["mIoU"] == pytest.approx(alone.evaluate(size=1)["mIoU"])


def test_boxes_of_the_truth_itself_score_one_in_their_sample(tiny_root, tiny_samples):
    metric = NuScenesDetectionMetric(data_root=str(tiny_root), version="v1.0-mini")
    metric.keeps_sample_scores = True
    spoiled = tiny_samples[0]
    spoiled.pred_instances_3d = spoiled.pred_instances_3d[:0]
    metric.process(None, tiny_samples)
    metric.evaluate(size=len(tiny_samples))
    scores = metric.sample_scores
    assert scores.pop(spoiled.sample_token) == {"mAP": 0.0}
    assert len(scores) == len(tiny_samples) - 1
    assert all(found == {"mAP": 1.0} for found in scores.values())


def test_frames_of_images_score_as_if_they_were_alone(tmp_path):
    car = np.array([[10.0, 10.0, 50.0, 40.0]])
    label = {"id": "0", "category": "car", "box2d": {"x1": 10, "y1": 10, "x2": 49, "y2": 39}}
    frames = [{"name": f"{k}.jpg", "labels": [label] * (k < 2)} for k in range(3)]  # the last one has no box
    (tmp_path / "det.json").write_text(json.dumps(frames))
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "0.png").write_bytes(encode_mask(np.array([[0, 1], [1, 1]], np.uint8)))
    samples = []
    for index in range(3):
        boxes = torch.from_numpy(car + 1000.0 * (index == 1))  # far away in the second frame
        samples.append(
            {
                "frame_name": f"{index}.jpg",
                "gt_instances": InstanceData(),
                "pred_instances": InstanceData(
                    bboxes=boxes, scores=torch.ones(1), labels=torch.tensor([BDD_BOX_CLASSES.index("car")])
                ),
                "pred_sem_seg": PixelData(sem_seg=torch.tensor([[[0, 1], [1, 0]]])),
            }
        )
    samples[0]["gt_sem_seg"] = PixelData(sem_seg=torch.zeros(1, 2, 2))
    boxes = BoxAPMetric(data_root=str(tmp_path), ann_file="det.json")
    masks = SemSegMetric(data_root=str(tmp_path), mask_dir="masks")
    for metric in (boxes, masks):
        metric.keeps_sample_scores = True
        metric.process(None, samples)
        metric.evaluate(size=3)
    assert boxes.sample_scores == {"0": {"AP": pytest.approx(1.0)}, "1": {"AP": 0.0}}
    assert masks.sample_scores == {"0": {"mIoU": pytest.approx((1 / 2 + 2 / 3) / 2)}}

"""The metrics of boxes and segmentation in images: both evaluators, ranks, subsets, files, and what they refuse."""

import json

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData, PixelData

from perception.evaluation import BoxAPMetric, SemSegMetric, encode_mask, read_image_boxes, read_mask
from perception.structures.driving_2d import BDD_BOX_CLASSES
from perception.utils import DataError

SIZE = (36, 64)


@pytest.fixture
def world(tmp_path):
    """Three frames with boxes, two others with masks, one with neither; predictions near the truth."""
    rng = np.random.default_rng(5)
    frames, samples = [], []
    for index in range(6):
        sample = {"frame_name": f"{index}.jpg"}
        corner = rng.uniform(0, 20, (3, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(5, 30, (3, 2))], axis=1).astype(np.float32)
        labels = rng.integers(0, 10, 3)
        mask = rng.integers(0, 4, SIZE).astype(np.uint8)
        sample["pred_instances"] = InstanceData(
            bboxes=torch.from_numpy(boxes + rng.normal(0, 0.8, (3, 4)).astype(np.float32)),
            scores=torch.from_numpy(rng.random(3).astype(np.float32)),
            labels=torch.from_numpy(labels),
        )
        noisy = np.where(rng.random(SIZE) < 0.7, mask, 1)
        sample["pred_sem_seg"] = PixelData(sem_seg=torch.from_numpy(noisy.astype(np.int64))[None])
        if index < 3:
            sample["gt_instances"] = InstanceData()
            frames.append(
                {
                    "name": sample["frame_name"],
                    "labels": [
                        {
                            "id": str(number),
                            "category": BDD_BOX_CLASSES[label],
                            "box2d": dict(
                                zip(("x1", "y1", "x2", "y2"), (box - [0, 0, 1, 1]).tolist(), strict=True)
                            ),
                        }
                        for number, (box, label) in enumerate(
                            zip(boxes.astype(np.float64), labels, strict=True)
                        )
                    ],
                }
            )
        elif index < 5:
            sample["gt_sem_seg"] = PixelData(sem_seg=torch.zeros(1, 2, 2))
            path = tmp_path / "masks" / f"{index}.png"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(encode_mask(mask))
        samples.append(sample)
    (tmp_path / "det.json").write_text(json.dumps(frames))
    return tmp_path, samples


def box_metric(root, **options):
    return BoxAPMetric(data_root=str(root), ann_file="det.json", **options)


def seg_metric(root, **options):
    return SemSegMetric(data_root=str(root), mask_dir="masks", **options)


def run(metric, samples):
    metric.check_dataset({})
    metric.process(None, samples)
    return metric.evaluate(size=len(samples))


def test_both_evaluators_agree_and_only_labelled_frames_count(world):
    root, samples = world
    fast, official = (run(box_metric(root, evaluator=name), samples) for name in ("fast", "official"))
    assert fast.keys() == official.keys()
    for key, value in official.items():
        assert fast[key] == pytest.approx(value, abs=1e-11)
    assert (fast["num_det_frames"], fast["comparable"]) == (3, True)
    assert 0.1 < fast["AP"] <= fast["AP50"] <= 1
    fast, official = (run(seg_metric(root, evaluator=name), samples) for name in ("fast", "official"))
    assert fast.keys() <= official.keys()
    for key, value in fast.items():
        assert official[key] == pytest.approx(value, abs=1e-11)
    assert (fast["num_seg_frames"], fast["seg_comparable"]) == (2, True)
    assert 0.4 < fast["mIoU"] < 1


def test_order_and_padding_change_nothing(world):
    root, samples = world
    for metric in (box_metric(root), seg_metric(root)):
        assert run(metric, samples) == run(metric, [*samples[::-1], samples[0], samples[4]])


def test_submission_files(world, tmp_path):
    root, samples = world
    out = tmp_path / "out"
    options = {"out_dir": str(out), "format_only": True}
    assert run(BoxAPMetric(data_root="nowhere", **options), samples) == {}
    assert run(SemSegMetric(data_root="nowhere", **options), samples) == {}
    boxes = read_image_boxes(out / "det.json")
    assert list(boxes) == [sample["frame_name"] for sample in samples]
    best = samples[5]["pred_instances"].scores.argsort(descending=True)
    assert np.array_equal(boxes["5.jpg"].boxes.astype(np.float32), samples[5]["pred_instances"].bboxes[best])
    written = json.loads((out / "det.json").read_text())[5]["labels"][0]["box2d"]
    assert (
        written["x2"] == float(samples[5]["pred_instances"].bboxes[best[0], 2]) - 1
    )  # the last pixel inside
    assert sorted(path.name for path in (out / "sem_seg").iterdir()) == [f"{index}.png" for index in range(6)]
    assert np.array_equal(read_mask(out / "sem_seg" / "5.png"), samples[5]["pred_sem_seg"].sem_seg[0])
    scored = run(box_metric(root, out_dir=str(tmp_path / "scored")), samples)
    assert "AP" in scored
    assert len(read_image_boxes(tmp_path / "scored" / "det.json")) == 3


def test_a_subset_is_marked(world):
    root, samples = world
    for evaluator in ("fast", "official"):
        found = run(box_metric(root, subset=True, evaluator=evaluator), samples[:2])
        assert (found["comparable"], found["num_det_frames"]) == (False, 2)
        found = run(seg_metric(root, subset=True, evaluator=evaluator), samples[3:4])
        assert (found["seg_comparable"], found["num_seg_frames"]) == (False, 1)


def test_a_subset_may_lack_a_kind_of_label(world):
    """The first samples of an index, as a dry run takes them, are often of one image set."""
    root, samples = world
    assert run(seg_metric(root, subset=True), samples[:2]) == {"num_seg_frames": 0, "seg_comparable": False}
    assert run(box_metric(root, subset=True), samples[3:]) == {"num_det_frames": 0, "comparable": False}


def test_missing_and_unknown_frames_are_named(world):
    root, samples = world
    with pytest.raises(ValueError, match="1 of 3 samples have no result: 1.jpg"):
        run(box_metric(root), [samples[0], samples[2]])
    with pytest.raises(ValueError, match="1 of 2 samples have no result: 4"):
        run(seg_metric(root), samples[:4])
    stranger = {**samples[0], "frame_name": "zebra.jpg"}
    with pytest.raises(ValueError, match="1 evaluated samples do not belong to the split: zebra.jpg"):
        run(box_metric(root), [*samples, stranger])
    with pytest.raises(DataError, match=r"no such mask \[sample zebra\]"):
        run(seg_metric(root), [{**samples[3], "frame_name": "zebra.jpg"}])


def test_without_labels(world):
    root, samples = world
    with pytest.raises(ValueError, match="none of 1 evaluated samples has box labels"):
        run(box_metric(root), samples[5:])
    with pytest.raises(ValueError, match="no evaluated sample has a mask"):
        run(seg_metric(root), samples[5:])
    with pytest.raises(ValueError, match="carries no frame_name"):
        run(seg_metric(root), [{}])


def test_wrong_predictions_are_named(world):
    root, samples = world
    with pytest.raises(DataError, match=r"of 64×35 pixels, the ground truth of 64×36.*\[sample 3\]"):
        run(seg_metric(root), [{**samples[3], "pred_sem_seg": {"sem_seg": torch.zeros(1, 35, 64)}}])
    for name, kind in (("pred_instances", box_metric), ("pred_sem_seg", seg_metric)):
        broken = [{key: value for key, value in sample.items() if key != name} for sample in samples]
        with pytest.raises(ValueError, match=f"has no {name}"):
            run(kind(root), broken)
    for change, message in (({"labels": torch.tensor([10])}, "allowed 0…9"),
                            ({"bboxes": torch.tensor([[5.0, 5.0, 4.0, 9.0]])}, "before it begins")):  # fmt: skip
        fine = {
            "bboxes": torch.tensor([[1.0, 1.0, 4.0, 9.0]]),
            "scores": torch.ones(1),
            "labels": torch.tensor([0]),
        }
        with pytest.raises(ValueError, match=message):
            run(box_metric(root), [{**samples[0], "pred_instances": {**fine, **change}}])


def test_boxes_that_are_not_finite(world):
    root, samples = world
    broken = {
        "bboxes": torch.tensor([[0.0, 0.0, float("nan"), 5.0], [0.0, 0.0, 5.0, 5.0]]),
        "scores": torch.tensor([0.9, 0.8]),
        "labels": torch.tensor([1, 1]),
    }
    found = run(box_metric(root), [{**samples[0], "pred_instances": broken}, *samples[1:]])
    assert found["num_dropped_boxes"] == 1


def test_options(tmp_path):
    for kind in (BoxAPMetric, SemSegMetric):
        with pytest.raises(ValueError, match="allowed: fast, official"):
            kind(data_root="x", evaluator="coco")
        with pytest.raises(ValueError, match="set out_dir"):
            kind(data_root="x", format_only=True)
        with pytest.raises(DataError, match="to score against"):
            kind(data_root=str(tmp_path)).check_dataset({})

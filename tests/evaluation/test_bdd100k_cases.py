"""BDD100K's published cases and random predictions: our readers and both evaluators give the toolkit's numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from perception.evaluation import (
    ImageBoxes,
    box_file,
    box_scores,
    count_pixels,
    encode_mask,
    list_masks,
    read_image_boxes,
    read_mask,
    read_rle_masks,
    seg_scores,
)
from perception.evaluation._bdd100k_toolkit import toolkit_module
from perception.evaluation._official_bdd100k import _quiet, official_box_scores, official_seg_scores
from perception.structures.driving_2d import BDD_BOX_CLASSES, BDD_SEG_CLASSES

EXACT = 1e-9
ROUNDED = 5e-5  # where the published value is given to four decimals

BOXES = {  # tests of scalabel
    "AP": 34.029392668401016,
    "AP50": 55.3239,
    "AP75": 34.9387,
    "APs": 20.9162,
    "APm": 48.4365,
    "APl": 64.2853,
    "AR1": 23.8773,
    "AR10": 38.0500,
    "AR100": 40.9516,
    "AP/car": 66.1419,
    "AP/pedestrian": 41.3767,
    "AP/rider": 41.7099,
    "AP/truck": 50.0708,
    "AP/bus": 0.3025,
    "AP/motorcycle": 4.5746,
}
MASKS = {  # tests of bdd100k
    "gt": {"mIoU": 61.73469387755102, "mAcc": 81.2715, "fIoU": 90.9184, "pAcc": 95.0},
    "gt+": {"mIoU": 31.9110577, "mAcc": 81.2715, "fIoU": 46.4543, "pAcc": 47.5},
}
RLE = {"mIoU": 77.69367702513847, "mAcc": 85.0807, "fIoU": 95.9658, "pAcc": 97.5927}


@pytest.fixture(scope="module")
def cases(shared_root: Path) -> Path:
    return shared_root / "data" / "bdd100k_cases"


def check(found, expected):
    for name, value in expected.items():
        tolerance = EXACT if len(str(value)) > 12 else ROUNDED
        assert found[name] == pytest.approx(value, abs=tolerance), name


def same(found, official):
    assert found.keys() == official.keys()
    for name, value in official.items():
        assert abs(found[name] - value) < EXACT, name


def test_boxes(cases):
    truth_path, result_path = cases / "det" / "gt.json", cases / "det" / "bbox_predictions.json"
    truth = read_image_boxes(truth_path)
    found = read_image_boxes(result_path)
    assert (len(truth), sum(map(len, truth.values())), sum(map(len, found.values()))) == (202, 3241, 5372)
    ours = box_scores(truth, found, class_names=BDD_BOX_CLASSES)
    official = official_box_scores(truth_path, result_path)
    check(ours, BOXES)
    check(official, BOXES)
    same(ours, official)


def test_no_box_is_predicted(cases):
    truth_path, result_path = cases / "det" / "gt.json", cases / "det" / "bbox_predictions_empty.json"
    truth = read_image_boxes(truth_path)
    ours = box_scores(truth, read_image_boxes(result_path), class_names=BDD_BOX_CLASSES)
    assert set(ours.values()) == {0.0}
    same(ours, official_box_scores(truth_path, result_path))


@pytest.mark.parametrize("folder", ["gt", "gt+"])
def test_masks(cases, folder):
    truth = list_masks(cases / "sem_seg_masks" / folder)
    found = list_masks(cases / "sem_seg_masks" / "pred")
    total = np.zeros((19, 20), dtype=np.int64)
    for stem, path in truth.items():
        mask = read_mask(path)
        # A missing prediction counts as pixels without a class.
        prediction = read_mask(found[stem]) if stem in found else np.full_like(mask, 255)
        total += count_pixels(prediction, mask, 19)
    ours = seg_scores(total, class_names=BDD_SEG_CLASSES)
    official = official_seg_scores(list(truth.values()), found, class_names=BDD_SEG_CLASSES)
    check(ours, MASKS[folder])
    check(official, MASKS[folder])
    same(ours, {name: official[name] for name in ours})


def test_run_lengths(cases):
    folder = cases / "sem_seg_rle"
    truth = read_rle_masks(folder / "sem_seg_sample.json")
    found = read_rle_masks(folder / "sem_seg_preds.json")
    (name,) = truth
    ours = seg_scores(count_pixels(found[name], truth[name], 19), class_names=BDD_SEG_CLASSES)
    check(ours, RLE)
    with _quiet():
        load = toolkit_module("scalabel.label.io").load
        frames = [load(str(folder / file)).frames for file in ("sem_seg_sample.json", "sem_seg_preds.json")]
        config = toolkit_module("bdd100k.common.utils").load_bdd100k_config("sem_seg")
        official = toolkit_module("scalabel.eval.sem_seg").evaluate_sem_seg(*frames, config.scalabel, nproc=1)
    for metric, value in official.summary().items():
        assert abs(ours[metric] - value) < EXACT, metric
    nothing = read_rle_masks(folder / "sem_seg_preds_empty.json")
    assert seg_scores(count_pixels(nothing[name], truth[name], 19), class_names=BDD_SEG_CLASSES)["mIoU"] == 0


def random_frames(rng, num_frames):
    """Ground truth with crowds, ignored categories and other names, and predictions near it, with equal scores."""
    names = ["car", "person", "bike", "truck", "traffic light", "other vehicle", "trailer", "van"]
    truth, found = [], {}
    for index in range(num_frames):
        labels, boxes, classes, scores = [], [], [], []
        for number in range(int(rng.integers(0, 9))):
            corner, size = rng.uniform(0, 600, 2), rng.uniform(4, 120, 2)
            box = np.concatenate([corner, corner + size])
            category = names[int(rng.integers(len(names)))]
            attributes = {"crowd": bool(rng.random() < 0.2)}
            labels.append(
                {
                    "id": str(number),
                    "category": category,
                    "attributes": attributes if rng.random() < 0.7 else None,
                    "box2d": dict(zip(("x1", "y1", "x2", "y2"), (box - [0, 0, 1, 1]).tolist(), strict=True)),
                }
            )
            for _ in range(int(rng.integers(0, 3))):
                boxes.append(box + rng.normal(0, 6, 4))
                classes.append(rng.choice([0, 2, 3, 7, 8]))
                scores.append(round(rng.random(), 1))  # many are equal: their order must be the toolkit's
        frame = {"name": f"{index:03d}.jpg", "labels": labels}
        truth.append(frame if rng.random() < 0.8 else {"name": frame["name"]})
        corners = np.sort(np.array(boxes).reshape(-1, 2, 2), axis=1).reshape(-1, 4).astype(np.float32)
        corners[:, 2:] = np.maximum(corners[:, 2:], corners[:, :2] + 1)  # a file's box has a pixel at least
        if rng.random() < 0.9:
            found[frame["name"]] = ImageBoxes(
                boxes=corners.astype(np.float64),
                labels=np.array(classes, dtype=np.int64),
                scores=np.array(scores, dtype=np.float32).astype(np.float64),
            )
    return truth, found


@pytest.mark.parametrize("seed", range(3))
def test_random_boxes(tmp_path, seed):
    truth, found = random_frames(np.random.default_rng(seed), 40)
    (tmp_path / "truth.json").write_text(json.dumps({"frames": truth}))
    (tmp_path / "det.json").write_bytes(b"".join(box_file(found)))
    read = read_image_boxes(tmp_path / "det.json")
    for name, boxes in found.items():
        assert np.array_equal(read[name].boxes, boxes.boxes)
        assert np.array_equal(read[name].scores, boxes.scores)
        assert np.array_equal(read[name].labels, boxes.labels)
    ours = box_scores(read_image_boxes(tmp_path / "truth.json"), found, class_names=BDD_BOX_CLASSES)
    same(ours, official_box_scores(tmp_path / "truth.json", tmp_path / "det.json"))
    assert 0 < ours["AP"] < 100


@pytest.mark.parametrize("seed", range(3))
def test_random_masks(tmp_path, seed):
    rng = np.random.default_rng(seed)
    total, every = np.zeros((19, 20), dtype=np.int64), []
    truth_paths, found_paths = [], {}
    for index in range(4):
        truth = rng.choice([0, 2, 3, 11, 18, 255], size=(30, 50)).astype(np.uint8)
        noise = rng.choice([0, 1, 2, 3, 18, 19, 255], size=truth.shape)
        found = np.where(rng.random(truth.shape) < 0.6, truth, noise).astype(np.uint8)
        total += count_pixels(found, truth, 19)
        every.append((truth, found))
        truth_paths.append(tmp_path / f"truth_{index}" / f"{index}.png")
        found_paths[str(index)] = tmp_path / f"{index}.png"
        truth_paths[-1].parent.mkdir()
        truth_paths[-1].write_bytes(encode_mask(truth))
        found_paths[str(index)].write_bytes(encode_mask(found))
        assert np.array_equal(read_mask(found_paths[str(index)]), found)
    ours = seg_scores(total, class_names=BDD_SEG_CLASSES)
    official = official_seg_scores(truth_paths, found_paths, class_names=BDD_SEG_CLASSES)
    same(ours, {name: official[name] for name in ours})
    truths, founds = (np.concatenate([pair[i].ravel() for pair in every]) for i in range(2))
    founds = np.where(founds > 18, 19, founds)[truths != 255]
    oracle = confusion_matrix(truths[truths != 255], founds, labels=range(20))[:19]
    assert np.array_equal(total, oracle)

"""Items of BDD100K: which labels they carry, randomness, subsets, defective frames."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from perception.datasets import BDD100KDataset, prepare_bdd100k, read_mask
from perception.datasets.transforms import read_image
from perception.registry import DATASETS
from perception.structures import BDD_BOX_CLASSES, BDD_SEG_CLASSES
from perception.utils import DataError
from tests.datasets.bdd100k_world import write_mask, write_root

NUM_TRAIN = 11  # 6 with boxes, 4 with masks, 1 with both


@pytest.fixture(scope="module")
def whole_root(tmp_path_factory) -> Path:
    root = write_root(tmp_path_factory.mktemp("bdd") / "bdd100k")
    prepare_bdd100k(root, progress=False)
    return root


@pytest.fixture
def root(tmp_path) -> Path:
    """A root that a test may damage."""
    root = write_root(tmp_path / "bdd100k")
    prepare_bdd100k(root, progress=False)
    return root


def load(results: dict) -> dict:
    """A pipeline that reads what the item names."""
    read_image(results["img_path"], sample_token=results["frame_name"])
    if "seg_path" in results:
        height, width = results["ori_shape"]
        results["gt_sem_seg"] = read_mask(
            results["seg_path"], size=(width, height), frame=results["frame_name"]
        )
    return results


def build(root: Path, split: str = "train", **options) -> BDD100KDataset:
    options = {"pipeline": [load], **options}
    return BDD100KDataset(ann_file=f"perception_index/bdd100k_{split}.json", data_root=str(root), **options)


def test_joined_items_carry_the_labels_that_the_frame_has(whole_root):
    dataset = build(whole_root)
    assert len(dataset) == NUM_TRAIN
    assert dataset.label_kinds.count(("det",)) == 6
    assert dataset.label_kinds.count(("seg",)) == 4
    assert dataset.label_kinds.count(("det", "seg")) == 1
    items = {item["frame_name"]: item for item in (dataset[index] for index in range(len(dataset)))}
    boxes, empty = items["train-det-0.jpg"], items["train-det-5.jpg"]
    assert boxes["gt_bboxes"].tolist() == [[2.5, 3.0, 21.25, 18.0], [11.5, 3.0, 30.25, 18.0]]
    assert [BDD_BOX_CLASSES[kind] for kind in boxes["gt_labels"]] == ["car", "pedestrian"]
    assert boxes["gt_ignored"].tolist() == [False, False]
    assert (boxes["ori_shape"], boxes["sample_token"]) == ((36, 64), "train-det-0.jpg")
    assert "seg_path" not in boxes
    assert [empty[f"gt_{name}"].shape for name in ("bboxes", "labels", "ignored")] == [(0, 4), (0,), (0,)]
    mask = items["train-seg-1.jpg"]
    assert not any(name.startswith("gt_b") for name in mask)
    assert np.unique(mask["gt_sem_seg"]).tolist() == [1, 18, 255]
    assert mask["img_path"] == str(whole_root / "images/10k/train/train-seg-1.jpg")
    both = items["train-both.jpg"]
    assert both["gt_labels"].tolist() == [BDD_BOX_CLASSES.index("rider")]
    assert np.unique(both["gt_sem_seg"]).tolist() == [1, 2]
    types = [boxes[name].dtype for name in ("gt_bboxes", "gt_labels", "gt_ignored")]
    assert types == [np.float32, np.int64, bool]
    assert sorted(item["img_id"] for item in items.values()) == list(range(NUM_TRAIN))


@pytest.mark.parametrize(("labels", "count"), [("det", 7), (["seg"], 5), (("seg", "det"), NUM_TRAIN)])
def test_one_of_the_sets_or_both(whole_root, labels, count):
    dataset = build(whole_root, labels=labels, test_mode=True)
    assert len(dataset) == count
    assert not dataset.is_subset
    for index in range(count):
        item = dataset[index]
        assert ("gt_bboxes" in item) <= ("det" in labels)
        assert ("seg_path" in item) <= ("seg" in labels)
        assert "gt_bboxes" in item or "seg_path" in item
    assert len(set(dataset.scene_tokens)) == count


def test_classes_and_registry(whole_root):
    config = {
        "type": "BDD100KDataset",
        "ann_file": "perception_index/bdd100k_val.json",
        "data_root": str(whole_root),
        "pipeline": [],
        "indices": 3,
    }
    dataset = DATASETS.build(config)
    assert dataset.is_subset
    assert len(dataset) == 3
    assert dataset.metainfo["classes"] == BDD_BOX_CLASSES
    assert dataset.metainfo["seg_classes"] == BDD_SEG_CLASSES
    assert dataset.metainfo["split"] == "val"


def test_randomness_depends_on_seed_epoch_or_visit_and_index_only(whole_root):
    def draw(dataset: BDD100KDataset, index: int, visit: int | None = None) -> float:
        item = dataset[index] if visit is None else dataset.read_visit(index, visit=visit)
        return float(item["rng"].random())

    dataset, other = build(whole_root), build(whole_root, seed=1)
    first = draw(dataset, 3)
    assert first == draw(build(whole_root), 3) == draw(dataset, 3)
    assert first not in (draw(dataset, 4), draw(other, 3), draw(dataset, 3, visit=0))
    dataset.set_epoch(1)
    assert draw(dataset, 3) != first
    visits = [draw(dataset, 3, visit=visit) for visit in range(4)]
    assert len(set(visits)) == 4
    dataset.set_epoch(2)
    assert [draw(dataset, 3, visit=visit) for visit in range(4)] == visits
    # Of a subset the item of a frame is the same as of the whole.
    subset = build(whole_root, indices=[3])
    assert draw(subset, 0) == first


def test_lost_later_a_file_is_named(root):
    dataset = build(root)
    path = root / "labels/sem_seg/masks/train/train-seg-0.png"
    path.unlink()
    index = dataset.sample_tokens.index("train-seg-0.jpg")
    with pytest.raises(DataError, match="the mask is missing") as caught:
        dataset[index]
    assert (caught.value.sample_token, caught.value.path) == ("train-seg-0.jpg", str(path))


def test_skip_takes_the_next_frame_with_the_same_labels_and_counts(root, caplog):
    write_mask(root / "labels/sem_seg/masks/train/train-seg-3.png", (0, 77))
    dataset = build(root, on_error="skip")
    tokens = dataset.sample_tokens
    index = tokens.index("train-seg-3.jpg")
    for _ in range(3):
        assert dataset[index]["frame_name"] == "train-seg-0.jpg"
        assert dataset.read_visit(index, visit=5)["frame_name"] == "train-seg-0.jpg"
    assert dataset.num_skipped == 1
    assert caplog.text.count("sample replaced by the next one") == 1
    (root / "images/100k/train/train-det-1.jpg").unlink()
    with pytest.raises(DataError, match="2 defective samples, more than the 1") as caught:
        dataset[tokens.index("train-det-1.jpg")]
    assert caught.value.sample_token == "train-det-1.jpg"


def test_skip_is_the_same_in_any_number_of_workers(root):
    write_mask(root / "labels/sem_seg/masks/train/train-seg-3.png", (0, 77))
    seen = []
    for num_workers in (0, 2):
        dataset = build(root, on_error="skip")
        loader = DataLoader(dataset, num_workers=num_workers, collate_fn=lambda batch: batch[0]["frame_name"])
        seen.append(list(loader))
        assert dataset.num_skipped == 1
    assert seen[0] == seen[1]
    assert "train-seg-3.jpg" not in seen[0]


def test_a_frame_without_equal_is_not_replaced_by_another_kind(root):
    write_mask(root / "labels/sem_seg/masks/train/train-both.png", (0, 77))
    dataset = build(root, on_error="skip")
    with pytest.raises(DataError, match="every sample like it is defective"):
        dataset[dataset.sample_tokens.index("train-both.jpg")]


def test_defects_known_from_the_index(root, caplog):
    write_mask(root / "labels/sem_seg/masks/train/train-seg-1.png", size=(32, 18))
    prepare_bdd100k(root, on_error="skip", progress=False)
    with pytest.raises(DataError, match="the index has 1 defective frames.*the mask is 32×18") as caught:
        build(root)
    assert caught.value.sample_token == "train-seg-1.jpg"
    with pytest.raises(DataError, match="1 defective frames"):
        build(root, on_error="skip", test_mode=True)
    dataset = build(root, on_error="skip")
    assert dataset.num_skipped == 1
    assert caplog.text.count("sample replaced") == 1
    index = dataset.sample_tokens.index("train-seg-1.jpg")
    assert dataset[index]["frame_name"] == "train-seg-2.jpg"
    assert dataset.num_skipped == 1
    assert dataset.label_kinds[index] == ("seg",)
    assert len(build(root, labels="det")) == 7  # the other set has no defect


def test_skipped_frames_are_shared_with_workers(root):
    dataset = build(root, on_error="skip")
    assert dataset._is_skipped.is_shared()
    assert isinstance(dataset._epoch, torch.Tensor)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"labels": ()}, ValueError, "labels must be one of"),
        ({"labels": "boxes"}, ValueError, "labels must be one of"),
        ({"labels": ("det", "sag")}, ValueError, "Did you mean 'seg'"),
        ({"on_error": "skp"}, ValueError, "Did you mean 'skip'"),
        ({"indices": 0}, ValueError, "selects no sample"),
        ({"pseudo_labels": "nowhere"}, DataError, "has neither labels/det_20/det_train.json"),
    ],
)
def test_options_out_of_range(whole_root, options, error, message):
    with pytest.raises(error, match=message):
        build(whole_root, **options)


def test_other_indexes_are_refused(whole_root, tmp_path):
    path = tmp_path / "index.json"
    path.write_text(json.dumps({"metainfo": {"dataset": "nuscenes"}, "data_list": [{"token": "a"}]}))
    with pytest.raises(DataError, match="this is no index of BDD100K"):
        BDD100KDataset(ann_file=str(path), data_root=str(whole_root), pipeline=[])
    with pytest.raises(DataError, match="there is no such index"):
        build(whole_root, split="test")
    only_boxes = write_root(tmp_path / "other", num_seg=0)
    for path in (only_boxes / "labels/sem_seg/masks/train").iterdir():
        path.unlink()
    prepare_bdd100k(only_boxes, progress=False)
    with pytest.raises(DataError, match="holds no frame of the image sets of labels"):
        build(only_boxes, labels="seg")

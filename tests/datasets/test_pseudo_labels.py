"""Pseudo labels beside, or in place of, a frame's own."""

import json
from pathlib import Path

import numpy as np
import pytest

from perception.datasets import BDD100KDataset, prepare_bdd100k
from perception.datasets.bdd100k_layout import boxes_file, masks_folder
from perception.structures import BDD_BOX_CLASSES
from perception.utils import DataError
from tests.datasets.bdd100k_world import label, write_mask, write_root


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = write_root(tmp_path_factory.mktemp("pseudo") / "bdd100k", num_det=2, num_seg=2)
    prepare_bdd100k(root, progress=False)
    return root


def build(root: Path, pseudo: str | list[str]) -> BDD100KDataset:
    return BDD100KDataset(
        ann_file="perception_index/bdd100k_train.json",
        data_root=str(root),
        pipeline=[],
        pseudo_labels=pseudo,
    )


def write_boxes(folder: Path, names: list[str]) -> Path:
    path = folder / boxes_file("train")
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = [
        {"name": name, "labels": [label(number, "truck", score=0.5 + number / 10)] if number else []}
        for number, name in enumerate(names)
    ]
    path.write_text(json.dumps(frames))
    return folder


def write_masks(folder: Path, names: list[str]) -> Path:
    for name in names:
        write_mask(folder / masks_folder("train") / f"{name}.png", (4, 255))
    return folder


def items(dataset: BDD100KDataset) -> dict[str, dict]:
    return {item["frame_name"]: item for item in (dataset[index] for index in range(len(dataset)))}


def test_the_other_tasks_labels_are_added(root, tmp_path):
    folder = write_boxes(tmp_path, ["train-seg-0.jpg", "train-seg-1.jpg"])
    write_masks(folder, ["train-det-0", "train-det-1"])
    found = items(build(root, str(folder)))
    first, second = found["train-seg-0.jpg"], found["train-seg-1.jpg"]
    assert [first[f"pseudo_{name}"].shape for name in ("bboxes", "labels", "scores")] == [(0, 4), (0,), (0,)]
    assert second["pseudo_bboxes"].tolist() == [[3.5, 3.0, 22.25, 18.0]]
    assert second["pseudo_labels"].tolist() == [BDD_BOX_CLASSES.index("truck")]
    np.testing.assert_allclose(second["pseudo_scores"], [0.6], rtol=1e-6)
    types = [second[f"pseudo_{name}"].dtype for name in ("bboxes", "labels", "scores")]
    assert types == [np.float32, np.int64, np.float32]
    assert "pseudo_seg_path" not in second
    assert "gt_bboxes" not in second
    path = tmp_path / masks_folder("train") / "train-det-1.png"
    assert found["train-det-1.jpg"]["pseudo_seg_path"] == str(path)
    assert "pseudo_bboxes" not in found["train-det-1.jpg"]
    assert not any(name.startswith("pseudo") for name in found["train-both.jpg"])
    second["pseudo_bboxes"][:] = 0  # what a transform does stays with it
    assert items(build(root, str(folder)))["train-seg-1.jpg"]["pseudo_bboxes"].any()


def test_two_teachers_label_every_frame(root, tmp_path):
    names = ["train-det-0", "train-det-1", "train-both", "train-seg-0", "train-seg-1"]
    boxes = write_boxes(tmp_path / "a", [f"{name}.jpg" for name in names])
    masks = write_masks(tmp_path / "b", names)
    for item in items(build(root, [str(boxes), str(masks)])).values():
        assert "pseudo_bboxes" in item
        assert "pseudo_seg_path" in item


def test_what_is_lacking_or_double_is_told(root, tmp_path):
    half = write_boxes(tmp_path / "half", ["train-seg-0.jpg"])
    with pytest.raises(
        DataError, match="no label and no pseudo label of boxes.*perception pseudo-label"
    ) as caught:
        build(root, str(half))
    assert caught.value.sample_token == "train-seg-1.jpg"
    masks = write_masks(tmp_path / "masks", ["train-det-0"])
    with pytest.raises(DataError, match="no pseudo label of a mask"):
        build(root, str(masks))
    with pytest.raises(DataError, match="two folders of pseudo labels have the same kind"):
        build(root, [str(half), str(half)])
    twice = write_boxes(tmp_path / "twice", ["train-seg-0.jpg", "train-seg-0.jpg"])
    with pytest.raises(DataError, match="stands twice in the pseudo labels"):
        build(root, str(twice))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="the folder of pseudo labels has neither"):
        build(root, str(empty))

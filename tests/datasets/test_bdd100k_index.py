"""`prepare` and `verify` on a BDD100K root in its official layout, whole and damaged in each way."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from perception.datasets import prepare_bdd100k, verify_bdd100k
from perception.utils import DataError
from tests.datasets.bdd100k_world import frame, label, write_frames, write_image, write_mask, write_root

MASKS = Path("labels/sem_seg/masks/train")


@pytest.fixture
def root(tmp_path) -> Path:
    return write_root(tmp_path / "bdd100k")


def entries(path: Path) -> dict[str, dict]:
    content = json.loads(path.read_text())
    return {entry["name"]: entry for entry in content["data_list"]}


def test_index_joins_both_sets(root):
    train, val = prepare_bdd100k(root, progress=False)
    assert [path.relative_to(root).as_posix() for path in (train, val)] == [
        "perception_index/bdd100k_train.json",
        "perception_index/bdd100k_val.json",
    ]
    found = entries(train)
    names = [f"train-det-{number}.jpg" for number in range(6)]
    assert list(found) == [
        *names[:2],
        "train-both.jpg",
        *names[2:],
        *(f"train-seg-{n}.jpg" for n in range(4)),
    ]
    assert found["train-det-0.jpg"] == {
        "name": "train-det-0.jpg",
        "kinds": ["det"],
        "img_path": "images/100k/train/train-det-0.jpg",
        "width": 64,
        "height": 36,
        "bboxes": [[2.5, 3.0, 21.25, 18.0], [11.5, 3.0, 30.25, 18.0]],
        "labels": [2, 0],
        "ignored": [0, 0],
    }
    assert found["train-det-5.jpg"]["bboxes"] == []
    assert found["train-both.jpg"]["kinds"] == ["det", "seg"]
    assert found["train-both.jpg"]["img_path"] == "images/100k/train/train-both.jpg"
    assert found["train-both.jpg"]["seg_path"] == "labels/sem_seg/masks/train/train-both.png"
    assert found["train-seg-1.jpg"] == {
        "name": "train-seg-1.jpg",
        "kinds": ["seg"],
        "img_path": "images/10k/train/train-seg-1.jpg",
        "width": 64,
        "height": 36,
        "seg_path": "labels/sem_seg/masks/train/train-seg-1.png",
    }
    assert json.loads(train.read_text())["metainfo"]["split"] == "train"
    assert verify_bdd100k(root, progress=False) == []


def test_one_set_alone_and_chosen_splits(root, tmp_path):
    shutil.rmtree(root / "labels" / "sem_seg")
    (path,) = prepare_bdd100k(root, splits=["val"], out=tmp_path / "out", progress=False)
    assert path == tmp_path / "out" / "bdd100k_val.json"
    assert {tuple(entry["kinds"]) for entry in entries(path).values()} == {("det",)}
    shutil.rmtree(root / "labels" / "det_20")
    with pytest.raises(DataError, match="this is no BDD100K root"):
        prepare_bdd100k(root, progress=False)


def test_the_test_split_has_images_without_labels(root):
    for kind, name in (("100k", "a"), ("100k", "b"), ("10k", "b"), ("10k", "c")):
        write_image(root / "images" / kind / "test" / f"{name}.jpg", 3)
    *_, path = prepare_bdd100k(root, progress=False)
    assert {name: (entry["kinds"], entry["img_path"]) for name, entry in entries(path).items()} == {
        "a.jpg": (["det"], "images/100k/test/a.jpg"),
        "b.jpg": (["det"], "images/100k/test/b.jpg"),
        "c.jpg": (["seg"], "images/10k/test/c.jpg"),
    }
    assert not any("bboxes" in entry or "seg_path" in entry for entry in entries(path).values())


def test_images_that_are_trained_on_and_scored_are_told(root, caplog):
    write_image(root / "images" / "100k" / "train" / "val-seg-0.jpg", 1)
    prepare_bdd100k(root, progress=False)
    assert "1 images of images/10k/val are also in images/100k/train, e.g. val-seg-0" in caplog.text


def _damage_image(root: Path) -> tuple[str, str, str]:
    (root / "images/100k/train/train-det-3.jpg").unlink()
    return "train-det-3.jpg", "images/100k/train/train-det-3.jpg", "its image is missing"


def _damage_header(root: Path) -> tuple[str, str, str]:
    (root / "images/10k/train/train-seg-0.jpg").write_bytes(b"no image")
    return "train-seg-0.jpg", "images/10k/train/train-seg-0.jpg", "header cannot be read"


def _damage_seg_image(root: Path) -> tuple[str, str, str]:
    (root / "images/10k/train/train-seg-2.jpg").unlink()
    return "train-seg-2.jpg", "images/10k/train/train-seg-2.jpg", "its image is missing"


def _damage_mask_size(root: Path) -> tuple[str, str, str]:
    write_mask(root / MASKS / "train-seg-2.png", size=(32, 18))
    return "train-seg-2.jpg", str(MASKS / "train-seg-2.png"), "the mask is 32×18, its image 64×36"


def _damage_mask_ids(root: Path) -> tuple[str, str, str]:
    write_mask(root / MASKS / "train-both.png", (3, 19))
    return "train-both.jpg", str(MASKS / "train-both.png"), "have the ids 19; allowed are 0 to 18 and 255"


def _damage_box(root: Path) -> tuple[str, str, str]:
    return _with_label(root, label(7, box2d={"x1": 9, "y1": 1, "x2": 3, "y2": 5})), *_boxes("x2 < x1")


def _damage_far_box(root: Path) -> tuple[str, str, str]:
    return _with_label(root, label(7, box2d={"x1": 9, "y1": 1, "x2": 99, "y2": 5})), *_boxes(
        "leaves the image"
    )


def _damage_category(root: Path) -> tuple[str, str, str]:
    return _with_label(root, label(7, "tram")), *_boxes("label 0007: category 'tram'")


def _damage_names(root: Path) -> tuple[str, str, str]:
    frames = _read(root)
    write_frames(root, "train", [*frames, frames[1]])
    return "train-det-1.jpg", *_boxes("its name stands twice")


def _boxes(message: str) -> tuple[str, str]:
    return "labels/det_20/det_train.json", message


def _read(root: Path) -> list[dict]:
    return json.loads((root / "labels/det_20/det_train.json").read_text())


def _with_label(root: Path, extra: dict) -> str:
    frames = _read(root)
    frames[1]["labels"].append(extra)
    write_frames(root, "train", frames)
    return frames[1]["name"]


DAMAGES = [
    _damage_image, _damage_header, _damage_seg_image, _damage_mask_size, _damage_mask_ids, _damage_box,
    _damage_far_box, _damage_category, _damage_names,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_defect_is_named_with_frame_and_file_before_training(
    root, damage: Callable[[Path], tuple[str, str, str]]
):
    name, path, message = damage(root)
    with pytest.raises(DataError, match=message) as caught:
        prepare_bdd100k(root, progress=False)
    assert f"frame {name}: " in str(caught.value)
    assert caught.value.path == str(root / path)
    assert not list((root / "perception_index").glob("*train*"))
    (problem,) = verify_bdd100k(root, decode_images=False, progress=False)
    assert (problem.token, problem.path) == (name, str(root / path))
    assert message in problem.message


def test_all_defects_are_told_at_once(root):
    for damage in (_damage_image, _damage_mask_ids, _damage_category):
        damage(root)
    assert len(verify_bdd100k(root, progress=False)) == 3
    with pytest.raises(DataError, match="2 more; `perception data verify` lists all"):
        prepare_bdd100k(root, progress=False)


def test_a_cut_image_is_found_by_decoding(root):
    path = root / "images/100k/val/val-det-0.jpg"
    path.write_bytes(path.read_bytes()[:-40])
    assert verify_bdd100k(root, decode_images=False, progress=False) == []
    (problem,) = verify_bdd100k(root, progress=False)
    assert (problem.token, problem.path) == ("val-det-0.jpg", str(path))


def test_one_defective_frame_may_be_left_to_training(root, caplog):
    name, _, message = _damage_mask_size(root)
    train, _ = prepare_bdd100k(root, on_error="skip", progress=False)
    entry = entries(train)[name]
    assert message in entry["defect"]
    assert entry["labelled"] == ["seg"]
    assert f"left to on_error='skip': frame {name}" in caplog.text
    _damage_image(root)
    with pytest.raises(DataError, match="2 of 11 frames of train are defective, more than the 1"):
        prepare_bdd100k(root, on_error="skip", progress=False)
    assert message in entries(train)[name]["defect"]  # the old index is untouched


def test_a_root_of_another_form_is_told(root, tmp_path):
    with pytest.raises(DataError, match="this is no BDD100K root") as caught:
        prepare_bdd100k(root.parent, progress=False)
    assert f"Did you mean {root}?" in str(caught.value)
    with pytest.raises(DataError, match="none named 'trian'"):
        prepare_bdd100k(root, splits=["trian"], progress=False)
    with pytest.raises(DataError, match="there are no labels of test; found are train, val"):
        prepare_bdd100k(root, splits=["test"], progress=False)
    with pytest.raises(ValueError, match="Did you mean 'skip'"):
        prepare_bdd100k(root, on_error="skp", progress=False)
    shutil.rmtree(root / "images" / "10k" / "train")
    with pytest.raises(DataError, match="unpack BDD100K's 10K images") as caught:
        prepare_bdd100k(root, progress=False)
    assert caught.value.path == str(root / "images/10k/train")
    assert "unpack BDD100K's 10K images" in str(verify_bdd100k(root, progress=False)[0])


def test_a_damaged_label_file_is_told(root):
    path = root / "labels/det_20/det_train.json"
    path.write_text(path.read_text()[:-30])
    with pytest.raises(DataError, match="not a label file in Scalabel's format") as caught:
        prepare_bdd100k(root, progress=False)
    assert caught.value.path == str(path)
    (problem,) = verify_bdd100k(root, progress=False)
    assert problem.path == str(path)


def test_a_name_cannot_lead_out_of_the_root(root):
    write_image(root / "images" / "secret.jpg", 1)
    write_frames(root, "train", [*_read(root), frame("../../secret.jpg")])
    (problem,) = verify_bdd100k(root, progress=False)
    assert "its image is missing" in problem.message

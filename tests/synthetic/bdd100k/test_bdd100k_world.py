"""The written folder: the official layout, readable by the official toolkit, repeatable, careful with what is there."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from perception.cli.main import main
from perception.evaluation._bdd100k_toolkit import toolkit_module
from perception.structures import BDD_BOX_CLASSES, BDD_SEG_CLASSES, IGNORE_SEG
from perception.synthetic import synthesize_bdd100k
from perception.utils import DataError

TINY: dict[str, Any] = {
    "num_det": (0, 0),
    "num_seg": (0, 1),
    "size": (128, 72),
    "num_workers": 1,
    "progress": False,
}


needs_toolkit = pytest.mark.skipif(
    importlib.util.find_spec("bdd100k") is None, reason="the official toolkit is not installed"
)


def _names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.iterdir())


def _frames(root: Path, split: str) -> list[dict[str, Any]]:
    return json.loads((root / "labels" / "det_20" / f"det_{split}.json").read_text())


def _hashes(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*.*g"))
    }


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize_bdd100k(tmp_path_factory.mktemp("tiny") / "world", **TINY)


def test_layout_is_that_of_the_download(bdd100k_root: Path) -> None:
    everything = {
        path.relative_to(bdd100k_root).as_posix() for path in bdd100k_root.rglob("*") if path.is_dir()
    }
    assert everything == {
        "images",
        *(f"images/{name}{split}" for name in ("100k", "10k") for split in ("", "/train", "/val")),
        "labels",
        "labels/det_20",
        "labels/sem_seg",
        "labels/sem_seg/masks",
        "labels/sem_seg/masks/train",
        "labels/sem_seg/masks/val",
    }
    seen: set[str] = set()
    for split, number in (("train", 4), ("val", 4)):
        det, seg = (_names(bdd100k_root / "images" / name / split) for name in ("100k", "10k"))
        assert len(det) == len(seg) == number
        assert seg == _names(bdd100k_root / "labels" / "sem_seg" / "masks" / split)
        assert [f"{name}.jpg" for name in det] == [frame["name"] for frame in _frames(bdd100k_root, split)]
        assert not seen & {*det, *seg}
        seen |= {*det, *seg}
    assert len(seen) == 16
    assert all(len(name) == 17 and name[8] == "-" for name in seen)


def test_images_masks_and_boxes_are_within_their_bounds(bdd100k_root: Path) -> None:
    for path in bdd100k_root.rglob("*.jpg"):
        image = cv2.imread(str(path))
        assert image.shape == (180, 320, 3)
        assert image.std() > 10
    ids: set[int] = set()
    for path in bdd100k_root.rglob("*.png"):
        mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert mask.shape == (180, 320)
        assert mask.dtype == np.uint8
        ids |= set(np.unique(mask).tolist())
    assert ids <= {*range(len(BDD_SEG_CLASSES)), IGNORE_SEG}
    assert len(ids) >= 14
    categories: set[str] = set()
    for frame in (*_frames(bdd100k_root, "train"), *_frames(bdd100k_root, "val")):
        assert set(frame["attributes"]) == {"weather", "timeofday", "scene"}
        for label in frame.get("labels", ()):
            box = label["box2d"]
            assert 0 <= box["x1"] < box["x2"] <= 319
            assert 0 <= box["y1"] < box["y2"] <= 179
            categories.add(label["category"])
    assert categories <= {*BDD_BOX_CLASSES, "trailer", "other vehicle"}
    assert len(categories & set(BDD_BOX_CLASSES)) >= 7


@needs_toolkit
def test_official_toolkit_reads_boxes(bdd100k_root: Path) -> None:
    config = toolkit_module("bdd100k.common.utils").load_bdd100k_config("det")
    to_scalabel = toolkit_module("bdd100k.label.to_scalabel").bdd100k_to_scalabel
    load = toolkit_module("scalabel.label.io").load
    path = bdd100k_root / "labels" / "det_20" / "det_train.json"
    frames = to_scalabel(load(str(path), 1).frames, config)
    raw = _frames(bdd100k_root, "train")
    assert [frame.name for frame in frames] == [frame["name"] for frame in raw]
    assert [len(frame.labels or ()) for frame in frames] == [len(frame.get("labels", ())) for frame in raw]
    evaluate = toolkit_module("scalabel.eval.detect").evaluate_det
    for frame in frames:
        for label in frame.labels or ():
            label.score = 1.0
    result = evaluate(frames, frames, config.scalabel, nproc=1)
    assert result.summary()["AP"] == pytest.approx(100.0)


@needs_toolkit
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the toolkit, for absent classes
def test_official_toolkit_reads_masks(bdd100k_root: Path) -> None:
    evaluate = toolkit_module("bdd100k.eval.seg").evaluate_sem_seg
    paths = sorted(str(path) for path in (bdd100k_root / "labels" / "sem_seg" / "masks" / "val").iterdir())
    assert evaluate(paths, paths, nproc=1, with_logs=False).summary()["mIoU"] == pytest.approx(100.0)


def test_fewer_images_are_the_first_of_more(bdd100k_root: Path, tmp_path: Path) -> None:
    """What a picture shows depends on the seed and the size only."""
    root = synthesize_bdd100k(
        tmp_path / "w", num_det=(0, 0), num_seg=(0, 3), size=(320, 180), num_workers=1, progress=False
    )
    few, many = _hashes(root), _hashes(bdd100k_root)
    assert len(few) == 3 + 3
    assert few.items() <= many.items()
    assert _frames(root, "train") == _frames(root, "val") == []


@pytest.mark.slow
def test_several_processes_write_the_same_world(bdd100k_root: Path, tmp_path: Path) -> None:
    root = synthesize_bdd100k(
        tmp_path / "w", num_det=(4, 4), num_seg=(4, 4), size=(320, 180), num_workers=2, progress=False
    )
    assert _hashes(root) == _hashes(bdd100k_root)
    assert all(_frames(root, split) == _frames(bdd100k_root, split) for split in ("train", "val"))


@pytest.mark.slow
def test_a_larger_world_holds_every_class_and_light(tmp_path: Path) -> None:
    root = synthesize_bdd100k(
        tmp_path / "w", num_det=(48, 0), num_seg=(48, 0), size=(320, 180), num_workers=2, progress=False
    )
    ids: set[int] = set()
    for path in root.rglob("*.png"):
        ids |= set(np.unique(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)).tolist())
    assert ids == {*range(len(BDD_SEG_CLASSES)), IGNORE_SEG}
    frames = _frames(root, "train")
    categories = {label["category"] for frame in frames for label in frame.get("labels", ())}
    assert categories == {*BDD_BOX_CLASSES, "trailer", "other vehicle"}
    assert {frame["attributes"]["timeofday"] for frame in frames} == {"daytime", "dawn/dusk", "night"}
    assert {frame["attributes"]["weather"] for frame in frames} == {"clear", "overcast", "foggy"}


def test_the_same_world_is_kept_and_another_refused(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny.rglob("*")}
    synthesize_bdd100k(tiny, **{**TINY, "progress": True})
    assert "kept" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in tiny.rglob("*")}
    with pytest.raises(DataError, match=r"another synthetic world \(seed: 0 there, 1 asked for\)"):
        synthesize_bdd100k(tiny, **TINY, seed=1)


def test_overwriting_takes_an_own_world_only(tmp_path: Path) -> None:
    root = synthesize_bdd100k(tmp_path / "w", **TINY)
    old = _hashes(root)
    synthesize_bdd100k(root, **TINY, seed=1, overwrite=True)
    assert len(_hashes(root)) == len(old)
    assert not _hashes(root).items() & old.items()
    foreign = tmp_path / "real"
    foreign.mkdir()
    (foreign / "precious.txt").write_text("x")
    with pytest.raises(DataError, match="is not empty and holds no synthetic world"):
        synthesize_bdd100k(foreign, **TINY, overwrite=True)
    assert (foreign / "precious.txt").read_text() == "x"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_det": (-1, 0)}, ValueError, r"num_det\[0\] must be in 0"),
        ({"num_seg": (0, 2.5)}, TypeError, r"num_seg\[1\] must be an int"),
        ({"num_det": (0, 0), "num_seg": (0, 0)}, ValueError, "at least one image"),
        ({"num_det": (1, 2, 3)}, ValueError, "num_det must be two numbers"),
        ({"size": (32, 720)}, ValueError, "width must be in 64"),
        ({"size": (1280, 9999)}, ValueError, "height must be in 36"),
        ({"seed": -1}, ValueError, "seed must be in 0"),
        ({"num_workers": 0}, ValueError, "num_workers must be in 1"),
    ],
)
def test_wrong_arguments(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        synthesize_bdd100k(tmp_path / "w", **{**TINY, **options})
    assert not list(tmp_path.iterdir())


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "synthesize", "--format", "bdd100k", "--out", str(tmp_path / "w"), "--workers", "1"]
    words += ["--det-images", "2", "0", "--seg-images", "0", "0", "--size", "128x72"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "2 images in" in out
    assert f"next: perception data prepare {tmp_path / 'w'}" in out
    assert len(list((tmp_path / "w").rglob("*.jpg"))) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "bdd100k", "--scenes", "2"], "--scenes: only with --format nuscenes; this is bdd100k"),
        (["--size", "128x72"], "--size: only with --format bdd100k; this is nuscenes"),
        (["--format", "bdd100k", "--size", "8x8"], "width must be in 64"),
        (["--format", "bdd100k", "--det-images", "0", "0", "--seg-images", "0", "0"], "at least one image"),
    ],
)
def test_command_with_options_that_do_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["data", "synthesize", "--out", str(tmp_path / "w"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

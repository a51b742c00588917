"""The written database: loadable, complete, chained, deterministic, and careful with what is already there."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import cv2
import numpy as np
import pytest
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.splits import create_splits_scenes, mini_train, mini_val

from perception.structures import CLASS_NAMES
from perception.synthetic import synthesize
from perception.synthetic import world as world_module
from perception.synthetic.names import CATEGORIES, LOCATIONS, SCENE_NAMES, VAL_SCENES
from perception.synthetic.output import MARKER, partial_path
from perception.synthetic.tables import TABLE_NAMES
from perception.utils import DataError

SMALL = {"num_scenes": 2, "samples_per_scene": 4, "progress": False}


def _hashes(root: Path) -> dict[str, str]:
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(root.rglob("*"))
        if p.is_file()
    }


def test_devkit_loads_all_tables(nusc: NuScenes) -> None:
    assert [s["name"] for s in nusc.scene] == ["scene-0061", "scene-0103"]
    assert len(nusc.sample) == 8
    assert len(nusc.sample_data) == 8 * 7
    assert {c["name"] for c in nusc.category} == set(CATEGORIES)
    assert len(CATEGORIES) == 23
    assert len(nusc.attribute) == 8
    for table in TABLE_NAMES:
        assert getattr(nusc, table), table


def test_any_world_of_two_or_more_scenes_has_both_official_splits(nusc: NuScenes) -> None:
    assert set(SCENE_NAMES) == set(mini_train) | set(mini_val)
    assert set(VAL_SCENES) == set(mini_val)
    for n in range(2, 11):
        assert set(SCENE_NAMES[:n]) & set(mini_val)
        assert set(SCENE_NAMES[:n]) & set(mini_train)
    splits = create_splits_scenes()
    names = {s["name"] for s in nusc.scene}
    assert names & set(splits["mini_train"])
    assert names & set(splits["mini_val"])


def test_scenes_lie_on_two_allowed_maps(nusc: NuScenes, world: Path) -> None:
    locations = {log["location"] for log in nusc.log}
    assert len(locations) == 2
    assert locations <= set(LOCATIONS)
    for row in nusc.map:
        mask = cv2.imread(str(world / row["filename"]), cv2.IMREAD_GRAYSCALE)
        assert set(np.unique(mask)) == {0, 255}


def test_files_exist_and_have_the_stated_form(nusc: NuScenes, world: Path) -> None:
    for row in nusc.sample_data:
        path = world / row["filename"]
        if row["sensor_modality"] == "camera":
            assert cv2.imread(str(path)).shape == (row["height"], row["width"], 3) == (396, 704, 3)
        else:
            points = np.fromfile(path, dtype=np.float32).reshape(-1, 5)
            assert len(points) > 3000
            assert set(np.unique(points[:, 4])) <= set(range(32))


def test_chains_run_both_ways(nusc: NuScenes) -> None:
    for table in (nusc.sample, nusc.sample_data, nusc.sample_annotation):
        by_token = {row["token"]: row for row in table}
        for row in table:
            if row["next"]:
                assert by_token[row["next"]]["prev"] == row["token"]
            if row["prev"]:
                assert by_token[row["prev"]]["next"] == row["token"]
    for scene in nusc.scene:
        token, num = scene["first_sample_token"], 0
        while token:
            last, token = token, nusc.get("sample", token)["next"]
            num += 1
        assert last == scene["last_sample_token"]
        assert num == scene["nbr_samples"] == 4
    stamps = [
        nusc.get("sample", r["sample_token"])["timestamp"] for r in nusc.sample_data if r["is_key_frame"]
    ]
    offsets = np.array([r["timestamp"] for r in nusc.sample_data]) - stamps
    assert offsets.min() < -40_000
    assert offsets.max() <= 2_000


def test_instances_agree_with_their_annotations(nusc: NuScenes) -> None:
    for row in nusc.instance:
        own = [a for a in nusc.sample_annotation if a["instance_token"] == row["token"]]
        assert len(own) == row["nbr_annotations"]
        assert nusc.get("sample_annotation", row["first_annotation_token"])["prev"] == ""
        assert nusc.get("sample_annotation", row["last_annotation_token"])["next"] == ""


def test_tables_hold_no_devkit_additions_and_no_nan(world: Path) -> None:
    for name in TABLE_NAMES:
        text = (world / "v1.0-mini" / f"{name}.json").read_text()
        assert "NaN" not in text
        rows = json.loads(text)
        assert len({r["token"] for r in rows}) == len(rows)


def test_same_files_from_one_process_and_from_many(world: Path, tmp_path: Path) -> None:
    """The shared world is made by as many processes as there are cores; here by one, or by two where there is one."""
    num_workers = 1 if len(os.sched_getaffinity(0)) > 1 else 2
    again = synthesize(tmp_path / "again", num_workers=num_workers, **SMALL)
    assert _hashes(again) == _hashes(world)


def test_all_classes_are_present(nusc: NuScenes) -> None:
    from nuscenes.eval.detection.utils import category_to_detection_name

    union = set()
    for scene in nusc.scene:
        tokens = {s["token"] for s in nusc.sample if s["scene_token"] == scene["token"]}
        found = {
            category_to_detection_name(a["category_name"])
            for a in nusc.sample_annotation
            if a["sample_token"] in tokens
        }
        union |= found
        assert len(found) >= 8  # a scene of four samples shows a short stretch of road
    assert union == set(CLASS_NAMES)


def test_finished_world_is_kept_and_another_is_refused(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(world, copy)
    before = (copy / MARKER).stat().st_mtime_ns
    assert synthesize(copy, num_scenes=2, samples_per_scene=4) == copy
    assert (copy / MARKER).stat().st_mtime_ns == before
    assert "kept" in capsys.readouterr().err
    with pytest.raises(DataError, match="seed: 0 there, 5 asked for"):
        synthesize(copy, seed=5, **SMALL)


def test_overwrite_replaces_a_synthetic_world_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world_module, "_record", lambda specs, *_: ([], []))
    monkeypatch.setattr(world_module, "_write_tables", lambda *_: None)
    out = tmp_path / "world"
    synthesize(out, **SMALL)
    synthesize(out, seed=7, overwrite=True, **SMALL)
    assert json.loads((out / MARKER).read_text())["seed"] == 7
    real = tmp_path / "nuscenes"
    (real / "v1.0-mini").mkdir(parents=True)
    with pytest.raises(DataError, match="holds no synthetic world"):
        synthesize(real, overwrite=True, **SMALL)
    assert (real / "v1.0-mini").is_dir()
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["nuscenes", "world"]


def test_output_path_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="not a folder"):
        synthesize(tmp_path / "file", **SMALL)


def test_interrupted_run_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world_module, "_record", lambda specs, *_: ([], []))
    monkeypatch.setattr(world_module, "_write_tables", lambda *_: None)
    out = tmp_path / "world"
    left = partial_path(out)
    left.mkdir()
    (left / "owner.pid").write_text("999999999\n")
    (left / "rest").write_text("x")
    synthesize(out, **SMALL)
    assert not left.exists()
    assert not (out / "rest").exists()


def test_second_run_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    left = partial_path(tmp_path / "world")
    left.mkdir()
    (left / "owner.pid").write_text(f"{os.getppid()}\n")
    with pytest.raises(DataError, match="another run"):
        synthesize(tmp_path / "world", **SMALL)
    assert left.exists()


def test_too_small_disk_is_found_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 9, 1))
    with pytest.raises(DataError, match="disk has 0 MB left"):
        synthesize(tmp_path / "world", **SMALL)
    assert not list(tmp_path.iterdir())


def test_disk_that_fills_up_during_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(world_module, "_record", full)
    with pytest.raises(DataError, match="disk is full"):
        synthesize(tmp_path / "world", **SMALL)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_scenes": 11}, "num_scenes must be in 1..10, found 11"),
        ({"num_scenes": 0}, "num_scenes"),
        ({"seed": -1}, "seed"),
        ({"samples_per_scene": 1}, "samples_per_scene must be in 2..40"),
        ({"samples_per_scene": 41}, "samples_per_scene"),
        ({"num_workers": 0}, "num_workers"),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        synthesize(tmp_path / "world", **arguments)
    with pytest.raises(TypeError, match="seed must be an int"):
        synthesize(tmp_path / "world", seed=1.5)
    assert not list(tmp_path.iterdir())

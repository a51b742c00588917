"""Damaged databases: `prepare` refuses them and `verify` lists every defect, with table, token and path."""

import json
import re
import shutil

import numpy as np
import pytest

from perception.datasets import prepare, verify
from perception.utils import DataError


def messages(root, **options) -> list[str]:
    return [str(problem) for problem in verify(root, progress=False, **options)]


@pytest.mark.parametrize("world", ["tiny_root", "synthetic_root"])
def test_sound_worlds_have_no_problem(request, world):
    assert messages(request.getfixturevalue(world)) == []


@pytest.mark.parametrize(
    ("table", "change", "pattern"),
    [
        (
            "sample_annotation",
            lambda r: r[3].update(instance_token="gone"),
            r"sample_annotation scene-0061-i0-a3: instance_token is 'gone', but table instance has no such token",
        ),
        ("scene", lambda r: r[0].update(log_token="x"), r"scene token-scene-0061: log_token is 'x'"),
        ("sample", lambda r: r[1].update(next="nowhere"), r"sample scene-0061-s1: next is 'nowhere'"),
        (
            "sample_data",
            lambda r: r[4].update(ego_pose_token="p"),
            r"ego_pose_token is 'p', but table ego_pose",
        ),
        (
            "sample_annotation",
            lambda r: r[0].update(attribute_tokens=["att9"]),
            r"attribute_tokens is 'att9', but table attribute",
        ),
        ("sensor", lambda r: r.append(dict(r[0])), r"sensor sensor-CAM_FRONT: the token occurs 2 times"),
        ("category", lambda r: r[1].pop("name"), r"category cat1: missing field name"),
        ("log", lambda r: r[0].pop("token"), r"log: a record has no token"),
        ("scene", list.clear, r"scene: the table is empty"),
        (
            "sample_annotation",
            list.clear,
            r"sample_annotation: the table is empty: there is nothing to train on",
        ),
        (
            "sample_data",
            lambda r: r.__delitem__(slice(0, 1)),
            r"sample scene-0061-s0: no key frame of CAM_FRONT in sample_data",
        ),
    ],
)
def test_broken_tables_are_named(tiny_copy, edit_table, table, change, pattern):
    edit_table(table, change)
    with pytest.raises(DataError, match=pattern):
        prepare(tiny_copy, progress=False)
    assert not (tiny_copy / "perception_index").exists()
    assert any(re.search(pattern, message) for message in messages(tiny_copy))


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        (None, "the table is missing"),
        ("[{]", "not readable JSON"),
        ('{"a": 1}', "JSON list of objects"),
        (b"\xff\xfe\x00", "not readable JSON"),
    ],
)
def test_unreadable_table_is_named(tiny_copy, content, pattern):
    path = tiny_copy / "v1.0-mini" / "instance.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=pattern) as caught:
        prepare(tiny_copy, progress=False)
    assert caught.value.path == str(path)
    assert any(pattern in message for message in messages(tiny_copy))


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("ego_pose", lambda r: r[6].update(rotation=[0.0, 0.0, 0.0, 0.0])),
        ("sample_annotation", lambda r: r[0].update(translation=[float("nan"), 0.0, 0.0])),
    ],
)
def test_numbers_that_are_not_finite_stop_prepare(tiny_copy, edit_table, table, change):
    edit_table(table, change)
    with pytest.raises(DataError, match="not finite.*verify.*scene-0061-s0"):
        prepare(tiny_copy, progress=False)


def test_missing_image_is_found_before_training(tiny_copy):
    path = next((tiny_copy / "samples" / "CAM_BACK_LEFT").glob("*s3*.jpg"))
    path.unlink()
    with pytest.raises(
        DataError, match="sample_data .*-CAM_BACK_LEFT: the file of sample .* is missing"
    ) as caught:
        prepare(tiny_copy, progress=False)
    assert caught.value.path == str(path)
    assert len(messages(tiny_copy)) == 1


def test_missing_folder_counts_all_its_files(tiny_copy):
    for path in (tiny_copy / "samples" / "CAM_FRONT").iterdir():
        path.unlink()
    (tiny_copy / "samples" / "CAM_FRONT").rmdir()
    with pytest.raises(DataError, match=r"is missing.*\(7 more;"):
        prepare(tiny_copy, progress=False)


def test_root_without_nuscenes(tmp_path):
    for root, pattern in ((tmp_path, "holds no nuScenes database"), (tmp_path / "no", "no such folder")):
        for function in (prepare, verify):
            with pytest.raises(DataError, match=pattern) as caught:
                function(root, progress=False)
            assert "synthesize" in str(caught.value)


def test_wrong_or_ambiguous_version_names_those_present(tiny_copy):
    with pytest.raises(DataError, match=r"no version 'v1\.0-trainval' here; present: v1\.0-mini"):
        prepare(tiny_copy, version="v1.0-trainval", progress=False)
    other = tiny_copy / "v1.0-test"
    other.mkdir()
    (other / "sample.json").write_text("[]")
    with pytest.raises(DataError, match=r"several versions are here: v1\.0-mini, v1\.0-test"):
        prepare(tiny_copy, progress=False)
    assert len(prepare(tiny_copy, version="v1.0-mini", progress=False)) == 2


def test_unknown_and_empty_splits(tiny_copy, edit_table):
    with pytest.raises(DataError, match=r"unknown split 'mini_trian'\. ?Did you mean 'mini_train'"):
        prepare(tiny_copy, splits=["mini_trian"], progress=False)
    with pytest.raises(DataError, match="no scene of split 'test'"):
        prepare(tiny_copy, splits=["test"], progress=False)
    edit_table("scene", lambda records: [record.update(name=f"my-{i}") for i, record in enumerate(records)])
    with pytest.raises(DataError, match="no scene here belongs to mini_train, mini_val; present: my-0, my-1"):
        prepare(tiny_copy, progress=False)


@pytest.mark.parametrize(
    ("table", "change", "pattern"),
    [
        ("sample_annotation", lambda r: r[0].update(size=[1.0, 0.0, 2.0]), "must be positive"),
        ("sample_annotation", lambda r: r[0].update(rotation=[1.0, 1.0, 0.0, 0.0]), "unit quaternion"),
        (
            "sample_annotation",
            lambda r: r[0].update(translation=[1.0, float("nan"), 0.0]),
            "three finite numbers",
        ),
        ("sample_annotation", lambda r: r[0].update(num_lidar_pts=-1), "whole number"),
        (
            "sample_annotation",
            lambda r: r[0].update(attribute_tokens=["att0", "att0"]),
            "more than one attribute",
        ),
        ("ego_pose", lambda r: r[0].update(rotation=[0.0, 0.0, 0.0, 0.0]), "unit quaternion"),
        ("calibrated_sensor", lambda r: r[0].update(camera_intrinsic=np.ones((3, 3)).tolist()), "invertible"),
        ("calibrated_sensor", lambda r: r[0].update(camera_intrinsic=[]), "invertible"),
        ("sample", lambda r: r[2].update(timestamp=r[1]["timestamp"]), "not before that of its next sample"),
        ("sample", lambda r: r[2].update(prev=""), "prev of its next sample"),
        ("category", lambda r: r[0].update(name="vehicle.tank"), "not one of nuScenes' categories"),
        ("log", lambda r: r[0].update(location="moon"), "unknown location 'moon'"),
        ("map", lambda r: r[0].update(filename="maps/no.png"), "the map's mask is missing"),
        ("log", lambda r: r.append({**r[0], "token": "new"}), "no record of table map names this log"),
    ],
)
def test_defects_in_values_are_reported(tiny_copy, edit_table, table, change, pattern):
    edit_table(table, change)
    found = messages(tiny_copy, decode_images=False)
    assert len(found) == 1
    assert pattern in found[0]
    assert found[0].startswith(table)


def test_a_place_of_ones_own_may_have_a_map(tiny_copy, edit_table):
    edit_table("log", lambda records: [record.update(location="moon") for record in records])
    expansion = tiny_copy / "maps" / "expansion"
    shutil.copy(next(expansion.glob("*.json")), expansion / "moon.json")
    assert messages(tiny_copy, decode_images=False) == []


def test_images_and_maps_are_read(tiny_copy):
    cut = next((tiny_copy / "samples" / "CAM_FRONT").glob("*s0*.jpg"))
    cut.write_bytes(cut.read_bytes()[:300])
    (tiny_copy / "maps" / "expansion" / "singapore-onenorth.json").unlink()
    found = messages(tiny_copy)
    assert len(found) == 2
    assert "map expansion v1.3" in found[0]
    assert "cut short" in found[1]
    assert str(cut) in found[1]


def test_all_defects_are_collected(tiny_copy, edit_table):
    edit_table(
        "sample_annotation", lambda records: [record.update(size=[1, -1, 1]) for record in records[:5]]
    )
    edit_table("sample", lambda records: records[0].update(timestamp=records[1]["timestamp"] + 1))
    found = messages(tiny_copy, decode_images=False)
    assert len(found) == 6
    assert json.loads((tiny_copy / "v1.0-mini" / "sample.json").read_text())[0]["token"] in found[0]

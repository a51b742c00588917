"""The index against nuscenes-devkit's own answers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from nuscenes.eval.common.utils import quaternion_yaw
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.geometry_utils import view_points

from perception.datasets import DETECTION_NAMES, prepare
from perception.datasets._poses import pose_matrix
from perception.datasets._tables import read_database
from perception.datasets.index_builder import _rounded
from perception.runtime import invert_pose
from perception.structures import CAMERA_NAMES, CLASS_NAMES, compose_lidar2img
from perception.utils import DataError


@pytest.fixture(scope="module", params=["tiny_root", "synthetic_root"])
def world(request, tmp_path_factory) -> tuple[NuScenes, list[dict]]:
    root = request.getfixturevalue(request.param)
    paths = prepare(root, out=tmp_path_factory.mktemp("index"), progress=False)
    assert [path.name for path in paths] == ["v1.0-mini_mini_train.json", "v1.0-mini_mini_val.json"]
    entries = [entry for path in paths for entry in json.loads(path.read_text())["data_list"]]
    return NuScenes("v1.0-mini", str(root), verbose=False), entries


def test_samples_are_in_order_and_linked(world):
    nusc, entries = world
    assert len(entries) == len(nusc.sample)
    for before, after in zip(entries, entries[1:], strict=False):
        if before["scene_token"] == after["scene_token"]:
            assert before["next"] == after["token"]
            assert after["prev"] == before["token"]
            assert after["frame_idx"] == before["frame_idx"] + 1
            assert after["timestamp"] > before["timestamp"]
        else:
            assert before["next"] == "" == after["prev"]


def test_boxes_equal_those_of_the_devkit(world):
    nusc, entries = world
    num_compared = 0
    for entry in entries:
        sample = nusc.get("sample", entry["token"])
        _, boxes, _ = nusc.get_sample_data(sample["data"]["LIDAR_TOP"])
        assert len(boxes) == len(entry["instances"])
        for box, instance in zip(boxes, entry["instances"], strict=True):
            width, length, height = box.wlh
            np.testing.assert_allclose(instance["bbox_3d"][:3], box.center, atol=2e-6)
            np.testing.assert_allclose(instance["bbox_3d"][3:6], (length, width, height))
            turn = instance["bbox_3d"][6] - quaternion_yaw(box.orientation)
            assert abs(np.sin(turn / 2)) < 1e-8
            name = DETECTION_NAMES.get(box.name)
            assert instance["bbox_label_3d"] == (-1 if name is None else CLASS_NAMES.index(name))
            num_compared += 1
    assert num_compared > 20


def test_velocities_equal_those_of_the_devkit(world):
    nusc, entries = world
    num_known = num_unknown = 0
    for entry in entries:
        sample = nusc.get("sample", entry["token"])
        lidar2global = np.array(entry["ego2global"]) @ np.array(entry["lidar_points"]["lidar2ego"])
        for token, instance in zip(sample["anns"], entry["instances"], strict=True):
            expected = nusc.box_velocity(token) @ lidar2global[:3, :3]
            if instance["velocity"] is None:
                assert np.isnan(expected).all()
                num_unknown += 1
            else:
                np.testing.assert_allclose(instance["velocity"], expected[:2], atol=1e-5)
                num_known += 1
    assert num_known > 10
    if "tiny" in str(nusc.dataroot):
        # Per scene: one cone seen once; two annotations whose only neighbour is 2 s away (car 5 twice), and the ends of
        # the two tracks that reach the last sample.
        assert num_unknown == 2 * (1 + 2 + 2)


def test_projection_equals_the_devkits(world):
    nusc, entries = world
    for entry in entries[::3]:
        sample = nusc.get("sample", entry["token"])
        centres = np.array([instance["bbox_3d"][:3] for instance in entry["instances"]])
        for camera in CAMERA_NAMES:
            image = entry["images"][camera]
            lidar2img = compose_lidar2img(np.array(image["cam2img"]), np.array(image["lidar2cam"]))
            points = np.column_stack([centres, np.ones(len(centres))]) @ lidar2img.T
            path, _, intrinsic = nusc.get_sample_data(sample["data"][camera])
            assert Path(path).name == Path(image["img_path"]).name
            for point, token in zip(points, sample["anns"], strict=True):
                box = _box_in_camera(nusc, token, sample["data"][camera])
                if box[2] > 1.0:
                    expected = view_points(box[:, None], intrinsic, normalize=True)[:2, 0]
                    np.testing.assert_allclose(point[:2] / point[2], expected, rtol=1e-5, atol=2e-3)


def _box_in_camera(nusc: NuScenes, annotation: str, sample_data: str) -> np.ndarray:
    """Global centre moved step by step through the camera's own ego pose, as `NuScenes.get_sample_data` does."""
    record = nusc.get("sample_data", sample_data)
    box = nusc.get_box(annotation)
    for table, token in (
        ("ego_pose", record["ego_pose_token"]),
        ("calibrated_sensor", record["calibrated_sensor_token"]),
    ):
        pose = nusc.get(table, token)
        box.translate(-np.array(pose["translation"]))
        box.rotate(type(box.orientation)(pose["rotation"]).inverse)
    return box.center


def test_index_is_standard_json_without_nan(tiny_root, tmp_path):
    path = prepare(tiny_root, out=tmp_path, progress=False)[0]

    def refuse(name):
        raise AssertionError(f"{name} in the index")

    content = json.loads(path.read_text(), parse_constant=refuse)
    assert content["metainfo"]["split"] == "mini_train"
    assert list(content["metainfo"]["categories"]) == list(CLASS_NAMES)
    assert content["data_list"][0]["map_location"] == "singapore-onenorth"
    assert "can_bus" not in content["data_list"][0]


def test_index_is_written_as_samples_are_made_and_an_error_leaves_none(tiny_copy, edit_table):
    edit_table("ego_pose", lambda records: records[-1].update(rotation=[0.0, 0.0, 0.0, 0.0]))
    with pytest.raises(DataError, match="not finite"):
        prepare(tiny_copy, progress=False)
    assert [path.name for path in (tiny_copy / "perception_index").iterdir()] == ["v1.0-mini_mini_train.json"]


def test_rounded_poses_move_no_projected_point():
    rng = np.random.default_rng(0)
    cam2img = np.array([[1266.4, 0.0, 816.3], [0.0, 1266.4, 491.5], [0.0, 0.0, 1.0]])
    for quaternion in rng.normal(size=(20, 4)):
        camera2lidar = pose_matrix(rng.uniform(-2, 2, 3), quaternion)
        lidar2cam = invert_pose(camera2lidar)
        points = np.column_stack([rng.uniform(-1, 1, (50, 2)), np.ones(50)]) * rng.uniform(1, 60, (50, 1))
        points = np.column_stack([points, np.ones(50)]) @ camera2lidar.T  # in the LiDAR frame, 1...60 m ahead
        pixels = []
        for pose in (lidar2cam, np.array(_rounded(lidar2cam))):
            projected = points @ compose_lidar2img(cam2img, pose).T
            pixels.append(projected[:, :2] / projected[:, 2:3])
        np.testing.assert_allclose(pixels[0], pixels[1], rtol=0, atol=1e-5)


def test_only_key_frames_of_cameras_and_lidar_are_kept(tiny_copy, edit_table):
    expected = prepare(tiny_copy, progress=False)[0].read_bytes()
    radar = {"token": "radar", "channel": "RADAR_FRONT", "modality": "radar"}
    edit_table("sensor", lambda records: records.append(radar))
    edit_table(
        "calibrated_sensor",
        lambda r: r.append({**r[0], "token": "c-radar", "sensor_token": "radar", "camera_intrinsic": []}),
    )
    edit_table(
        "sample_data",
        lambda r: r.extend(
            [{**r[0], "token": "sweep", "ego_pose_token": "extra", "is_key_frame": False}]
            + [{**r[0], "token": "rad", "ego_pose_token": "extra", "calibrated_sensor_token": "c-radar"}]
        ),
    )
    edit_table("ego_pose", lambda r: r.append({**r[0], "token": "extra"}))
    database, problems = read_database(tiny_copy)
    assert problems == []
    assert not {"sweep", "rad"} & database["sample_data"].keys()
    assert "extra" not in database["ego_pose"]
    assert prepare(tiny_copy, progress=False)[0].read_bytes() == expected


@pytest.mark.parametrize("seed", ["1", "2", "3"])
def test_the_first_defect_is_always_the_same(tiny_copy, edit_table, seed):
    edit_table("sample_data", lambda records: [records.pop(at) for at in (50, 30, 0)])
    code = "import sys; from perception.datasets import prepare; prepare(sys.argv[1], progress=False)"
    result = subprocess.run(
        [sys.executable, "-c", code, str(tiny_copy)],
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "sample scene-0061-s0: no key frame of CAM_FRONT in sample_data (2 more" in result.stderr


def test_own_splits_are_indexed(tiny_copy):
    (tiny_copy / "v1.0-mini" / "splits.json").write_text(json.dumps({"night": ["scene-0103", "scene-0061"]}))
    paths = prepare(tiny_copy, splits=["night"], progress=False)
    assert [path.name for path in paths] == ["v1.0-mini_night.json"]
    scenes = [entry["scene_name"] for entry in json.loads(paths[0].read_text())["data_list"]]
    assert scenes == ["scene-0061"] * 4 + ["scene-0103"] * 4


def test_test_version_needs_no_annotations(tiny_copy, edit_table):
    edit_table("sample_annotation", list.clear)
    edit_table("instance", list.clear)
    edit_table("scene", lambda records: records[0].update(name="scene-0077"))
    (tiny_copy / "v1.0-mini").rename(tiny_copy / "v1.0-test")
    (path,) = prepare(tiny_copy, progress=False)
    assert path.name == "v1.0-test_test.json"
    entries = json.loads(path.read_text())["data_list"]
    assert len(entries) == 4
    assert all(entry["instances"] == [] for entry in entries)


def test_can_bus_uses_the_nearest_message(tiny_copy):
    folder = tiny_copy / "can_bus"
    folder.mkdir()
    start = 1_500_000_000_000_000
    messages = [
        {"utime": start + offset, "accel": [offset, 0, 9.8], "rotation_rate": [0, 0, 0.1], "vel": [5, 0, 0]}
        for offset in (-30_000, 10_000, 490_000)
    ]
    (folder / "scene-0061_pose.json").write_text(json.dumps(messages))
    train, val = prepare(tiny_copy, progress=False)
    entries = json.loads(train.read_text())["data_list"]
    assert entries[0]["can_bus"] == [10_000, 0, 9.8, 0, 0, 0.1, 5, 0, 0]
    assert entries[1]["can_bus"][0] == 490_000
    assert "can_bus" not in entries[2]  # 0.56 s from the last message
    assert "can_bus" not in json.loads(val.read_text())["data_list"][0]

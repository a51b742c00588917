"""The index against nuscenes-devkit's own answers."""

import json
from pathlib import Path

import numpy as np
import pytest
from nuscenes.eval.common.utils import quaternion_yaw
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.geometry_utils import view_points

from perception.datasets import DETECTION_NAMES, prepare
from perception.structures import CAMERA_NAMES, CLASS_NAMES, compose_lidar2img


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

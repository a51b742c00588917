"""The Predictor on a small graph whose function is known: history per stream, frames of reference, bad input."""

from dataclasses import replace

import numpy as np
import pytest
from nuscenes.utils.data_classes import Box
from pyquaternion import Quaternion

from perception.evaluation._results import boxes2entries, select_boxes
from perception.runtime import Graph, ImagePredictor, Predictor, Streaming
from perception.runtime.frame import check_frame
from perception.runtime.geometry import ego_motion
from tests.runtime.frames import driven, make_frame
from tests.runtime.toy_export import CAMERAS, CELLS, CHANNELS, CLASSES, bevformer, write_bevformer


@pytest.fixture
def predictor(rig_export):
    return Predictor(rig_export, num_threads=1)


def by_hand(frame, before=None, bev=None):
    """The graph's function on what a frame and its history should become."""
    found = check_frame(frame, CAMERAS)
    past = None if before is None else before.ego2global
    inputs = {
        "images": found.images[None],
        "lidar2img": found.lidar2img[None].astype(np.float32),
        "ego_motion": ego_motion(past, found.ego2global, found.lidar2ego, found.can)[None].astype(np.float32),
        "use_prev_bev": np.array([before is not None], np.float32),
        "prev_bev": np.zeros((1, CELLS, CHANNELS), np.float32) if bev is None else bev,
    }
    return bevformer(inputs)


def assert_same(prediction, expected):
    np.testing.assert_allclose(prediction.boxes_lidar, expected["boxes"][0, :4], rtol=1e-5)
    np.testing.assert_allclose(prediction.map_probabilities, expected["seg"][0], rtol=1e-5)


def test_history_is_carried_from_frame_to_frame(predictor):
    frames = [make_frame(step) for step in range(3)]
    expected = by_hand(frames[0])
    first = predictor.predict(frames[0])
    assert_same(first, expected)
    assert (first.has_history, first.reset_reason) == (False, "start")
    for before, frame in zip(frames, frames[1:], strict=False):
        expected = by_hand(frame, before, expected["bev"])
        found = predictor.predict(frame)
        assert_same(found, expected)
        assert (found.has_history, found.reset_reason) == (True, "")


def test_what_a_prediction_holds(predictor):
    found = predictor.predict(make_frame(0))
    assert len(found) == 4  # the box of score 0 is none
    assert found.names == CLASSES
    assert found.attributes == ("vehicle.moving", "vehicle.stopped", "pedestrian.moving", "")
    assert found.map_probabilities.shape == (2, 4, 6)
    assert found.map_classes.shape == (4, 6)
    assert found.scores.tolist() == pytest.approx([0.9, 0.8, 0.6, 0.3])
    assert len(Predictor(predictor._graph.path.parent, score_threshold=0.7).predict(make_frame(0))) == 2


def test_boxes_in_ego_and_global_frame_are_the_devkits(predictor):
    """nuscenes-devkit moves the same boxes."""
    frame = make_frame(2)
    found = predictor.predict(frame)
    for index, row in enumerate(found.boxes_lidar.astype(float)):
        box = Box(
            list(row[:3] + (0, 0, row[5] / 2)),
            list(row[[4, 3, 5]]),
            Quaternion(axis=(0, 0, 1), angle=row[6]),
            velocity=(*row[7:9], 0.0),
        )
        for pose, boxes in ((frame.lidar2ego, found.boxes_ego), (frame.ego2global, found.boxes_global)):
            box.rotate(Quaternion(matrix=pose, rtol=1e-4, atol=1e-4))
            box.translate(pose[:3, 3])
            np.testing.assert_allclose(boxes.centers[index], box.center, atol=1e-6)
            np.testing.assert_allclose(boxes.velocities[index], box.velocity, atol=1e-6)
            turn = Quaternion(boxes.rotations[index])
            np.testing.assert_allclose(turn.rotation_matrix, box.orientation.rotation_matrix, atol=1e-6)
            heading = box.orientation.rotation_matrix[:, 0]
            assert np.cos(boxes.yaws[index] - np.arctan2(heading[1], heading[0])) == pytest.approx(1)


def test_entries_are_those_of_the_evaluation(predictor):
    frame = make_frame(2)
    found = predictor.predict(frame)
    selected = select_boxes(
        sample_token="t",
        boxes=found.boxes_lidar,
        scores=found.scores,
        labels=found.labels,
        pose=frame.ego2global @ frame.lidar2ego,
        num_classes=len(CLASSES),
    )
    expected = boxes2entries("t", selected, class_names=CLASSES)
    for mine, theirs in zip(found.nuscenes_entries("t"), expected, strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in theirs.items():
            if key == "rotation":  # q and −q are one rotation
                assert abs(np.dot(mine[key], value)) == pytest.approx(1, abs=1e-9)
            else:
                assert mine[key] == (value if isinstance(value, str) else pytest.approx(value, abs=1e-6))


def test_streams_do_not_touch_each_other(predictor):
    alone = [predictor.predict(make_frame(step)) for step in range(3)]
    predictor.reset()
    assert predictor.streams == ()
    for step, expected in enumerate(alone):
        mine, other = make_frame(step, stream="a"), make_frame(step + 7, stream="b", seed=4)
        found = predictor.predict_batch([other, mine])
        assert [prediction.stream for prediction in found] == ["b", "a"]
        np.testing.assert_allclose(found[1].boxes_lidar, expected.boxes_lidar, rtol=1e-6)
    assert set(predictor.streams) == {"a", "b"}
    predictor.reset("a")
    assert predictor.streams == ("b",)
    again = predictor.predict(make_frame(0, stream="a"))
    np.testing.assert_array_equal(again.boxes_lidar, alone[0].boxes_lidar)


def test_images_of_other_sizes_go_through_one_after_the_other(predictor):
    small = make_frame(0, stream="small")
    cameras = {
        name: replace(camera, image=np.repeat(camera.image, 2, axis=0))
        for name, camera in small.cameras.items()
    }
    large = replace(small, cameras=cameras, stream="large")
    one, two, three = predictor.predict_batch([small, large, replace(small, stream="third")])
    np.testing.assert_allclose(one.boxes_lidar, two.boxes_lidar, rtol=1e-6)
    np.testing.assert_allclose(one.boxes_lidar, three.boxes_lidar, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"scene": "another"}, "scene"),
        ({"timestamp": 1002.6}, "gap"),
        ({"ego2global": driven(1, along=60.0)}, "jump"),
        ({"stream": "other"}, "start"),
    ],
)
def test_the_history_ends_at_a_gap_a_jump_and_a_scene(predictor, changes, reason):
    predictor.predict(make_frame(0))
    frame = make_frame(1, **changes)
    found = predictor.predict(frame)
    assert (found.has_history, found.reset_reason) == (False, reason)
    assert_same(found, by_hand(frame))


def test_limits_can_be_given(rig_export):
    patient = Predictor(rig_export, max_gap_s=10.0, max_jump_m=100.0)
    patient.predict(make_frame(0))
    assert patient.predict(make_frame(1, timestamp=1005.0, ego2global=driven(1, along=60.0))).has_history
    with pytest.raises(ValueError, match="max_gap_s must be positive, got 0"):
        Predictor(rig_export, max_gap_s=0)


@pytest.mark.parametrize("step", [2, 1])
def test_time_that_does_not_go_forward_is_an_error(predictor, step):
    predictor.predict(make_frame(1))
    expected = predictor.predict(make_frame(2))
    with pytest.raises(ValueError, match=r"time must go forward, but 100\d.*reset\('default'\)"):
        predictor.predict(make_frame(step))
    after = predictor.predict(make_frame(3))  # the stream is as it was
    assert after.has_history
    assert expected.has_history
    assert not predictor.predict(make_frame(0, scene="replay")).has_history


def test_a_stream_twice_in_a_batch_is_an_error(predictor):
    with pytest.raises(ValueError, match="stream 'default' occurs twice"):
        predictor.predict_batch([make_frame(0), make_frame(1)])
    assert predictor.streams == ()


def changed_camera(**changes):
    frame = make_frame(0)
    cameras = dict(frame.cameras)
    cameras["CAM_BACK"] = replace(cameras["CAM_BACK"], **changes)
    return replace(frame, cameras=cameras)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (
            changed_camera(image=np.zeros((4, 5, 3), np.float32)),
            "CAM_BACK: image must be an array of uint8.*float32",
        ),
        (changed_camera(image=[[1]]), "CAM_BACK: image must be an array of uint8.*got list"),
        (changed_camera(image=np.zeros((3, 4, 5), np.uint8)), r"\(3, 4, 5\). Channels come last"),
        (
            changed_camera(image=np.zeros((4, 5), np.uint8)),
            r"must be \(height, width, 3\), RGB, got \(4, 5\)",
        ),
        (changed_camera(image=np.zeros((4, 6, 3), np.uint8)), "must have one size.*'CAM_BACK': '6×4'"),
        (changed_camera(intrinsics=np.full((3, 3), np.nan)), "CAM_BACK: intrinsics must be finite"),
        (changed_camera(intrinsics=np.zeros((3, 3))), "CAM_BACK: intrinsics must have the form"),
        (changed_camera(camera2ego=np.ones((4, 4))), "CAM_BACK: camera2ego must end in the row"),
        (changed_camera(ego2global=2 * np.eye(3)), "CAM_BACK: ego2global must have the shape"),
        (make_frame(0, lidar2ego=np.diag([1.0, 1, -1, 1])), "lidar2ego must be a rotation, but it mirrors"),
        (replace(make_frame(0), ego2global=np.full((4, 4), np.inf)), "default.: ego2global must be finite"),
        (make_frame(0, timestamp=np.nan), "timestamp must be a finite number of seconds"),
        (make_frame(0, timestamp="now"), "timestamp must be a finite number of seconds, got 'now'"),
        (make_frame(0, can=np.zeros(18)), "can must be 9 finite numbers"),
        (make_frame(0, cameras={}), "needs 6 cameras.*got 0, without CAM_FRONT"),
        (
            replace(
                make_frame(0),
                cameras={**make_frame(0).cameras, "CAM_BAKC": make_frame(0).cameras["CAM_BACK"]},
            ),
            "unknown CAM_BAKC. Did you mean 'CAM_BACK'",
        ),
    ],
)
def test_bad_frames_are_named_and_change_nothing(predictor, frame, message):
    with pytest.raises(ValueError, match=message):
        predictor.predict_batch([make_frame(0, stream="good"), frame])
    assert predictor.streams == ()


def test_outputs_that_are_not_finite_are_an_error_and_change_nothing(tmp_path):
    config = {"model": {"bev_encoder": {"max_cameras_per_cell": 2}}}
    predictor = Predictor(write_bevformer(tmp_path / "e", training_config=config))
    huge = np.array([[2e38, 0, 2], [0, 2e38, 2], [0, 0, 1]])
    with pytest.raises(ValueError, match="'bad': what the graph made.*seg, bev.*room for 2 cameras"):
        predictor.predict_batch(
            [make_frame(0, stream="good"), replace(changed_camera(intrinsics=huge), stream="bad")]
        )
    assert predictor.streams == ()


def test_intrinsics_of_another_image_size_are_warned_of(predictor, caplog):
    intrinsics = np.array([[60.0, 0, 25], [0, 60, 20], [0, 0, 1]])
    predictor.predict(changed_camera(intrinsics=intrinsics))
    assert "CAM_BACK: the principal point (25.0, 20.0) lies outside the image of 5×4" in caplog.text


@pytest.mark.parametrize("batch", [1, 3])
def test_a_graph_of_a_fixed_batch(tmp_path, rig_export, batch):
    fixed, free = Predictor(write_bevformer(tmp_path / "e", batch=batch)), Predictor(rig_export)
    for step in range(2):
        frames = [make_frame(step, stream=name, seed=number) for number, name in enumerate("abcd")]
        for mine, theirs in zip(fixed.predict_batch(frames), free.predict_batch(frames), strict=True):
            np.testing.assert_allclose(mine.boxes_lidar, theirs.boxes_lidar, rtol=1e-6)


def test_a_model_without_history_still_takes_the_motion(tmp_path):
    predictor = Predictor(write_bevformer(tmp_path / "e", has_history=False))
    frames = [make_frame(step) for step in range(2)]
    for before, frame in zip([None, frames[0]], frames, strict=True):
        inputs = by_hand(frame, before)
        assert_same(predictor.predict(frame), inputs)


def test_upstreams_motion_where_the_model_was_trained_with_it(tmp_path, rig_export):
    upstream = Predictor(write_bevformer(tmp_path / "e", streaming=Streaming(motion="upstream")))
    mine = upstream.predict(make_frame(0)).boxes_lidar
    assert not np.allclose(mine, Predictor(rig_export).predict(make_frame(0)).boxes_lidar, rtol=1e-4)


def test_the_graph_refuses_inputs_of_another_form(rig_export):
    graph = Graph(rig_export)
    good = {
        "images": np.zeros((1, 6, 4, 5, 3), np.uint8),
        "lidar2img": np.zeros((1, 6, 4, 4), np.float32),
        "ego_motion": np.zeros((1, 18), np.float32),
        "prev_bev": graph.empty_history(1),
        "use_prev_bev": np.zeros(1, np.float32),
    }
    assert graph.run(good)["boxes"].shape == (1, 5, 9)
    for changes, message in (
        ({"ego_motion": np.zeros((1, 18))}, "ego_motion must be an array of float32, got float64"),
        (
            {"ego_motion": np.zeros((2, 18), np.float32)},
            r"ego_motion must be \('batch', 18\) with {'batch': 1}",
        ),
        ({"lidar2img": np.zeros((1, 5, 4, 4), np.float32)}, r"lidar2img must be \('batch', 6, 4, 4\)"),
        ({"images": [1]}, "images must be an array of uint8, got list"),
    ):
        with pytest.raises(ValueError, match=message):
            graph.run({**good, **changes})
    with pytest.raises(ValueError, match="takes the inputs images, lidar2img"):
        graph.run({"images": good["images"]})
    with pytest.raises(ValueError, match="num_threads must be at least 1"):
        Graph(rig_export, num_threads=0)


def test_each_kind_has_its_class(rig_export, image_export):
    with pytest.raises(ValueError, match="open it by ImagePredictor"):
        Predictor(image_export)
    with pytest.raises(ValueError, match="open it by Predictor"):
        ImagePredictor(rig_export)
    with pytest.raises(ValueError, match="no variant 'int8'"):
        Predictor(rig_export, variant="int8")

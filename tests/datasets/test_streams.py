"""Frames of streams: motion since the frame before, and one world for a whole visit."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from perception.datasets import BEVRandomFlip, BEVRandomRotate, LoadMultiViewImages

RAW = [lambda results: results]


def flipping(prob=0.5, **rotate):
    """Images, a mirror for them and the BEV, and perhaps a turn; nothing packed."""
    steps = [LoadMultiViewImages(), BEVRandomFlip(prob=prob, mirror_images=True)]
    return [*steps, BEVRandomRotate(**rotate)] if rotate else steps


def frame_of(results):
    (frame,) = results["frames"]
    return frame


def test_an_item_is_one_frame(build):
    dataset = build(history="stream")
    assert dataset.queue_length == 1
    assert dataset.is_streamed
    first = dataset.read_streamed(4, previous=None, visit=0)
    second = dataset.read_streamed(5, previous=4, visit=0)
    assert first["inputs"]["img"].shape[0] == second["inputs"]["img"].shape[0] == 1
    assert first["inputs"]["has_prev"].tolist() == [False]
    assert second["inputs"]["has_prev"].tolist() == [True]
    assert first["data_samples"].carried_token == ""
    assert second["data_samples"].carried_token == second["data_samples"].prev_token == "scene-0103-s0"
    alone = dataset[5]
    assert alone["inputs"]["has_prev"].tolist() == [False]
    assert alone["data_samples"].carried_token == ""


@pytest.mark.parametrize("upstream_can_bus", [False, True])
def test_motion_is_that_of_a_queue(build, upstream_can_bus):
    """Oracle: the last frame of a queue of consecutive frames, and the frame of test mode."""
    options = {"pipeline": RAW, "upstream_can_bus": upstream_can_bus}
    streamed = build(history="stream", **options)
    queue = build(queue_length=2, history="consecutive", **options)
    tested = build(test_mode=True, **options)
    for idx in (1, 2, 3, 5, 6, 7):
        frame = frame_of(streamed.read_streamed(idx, previous=idx - 1, visit=3))
        for other in (queue[idx]["frames"][-1], frame_of(tested[idx])):
            assert frame["has_prev"] is other["has_prev"] is True
            assert_array_equal(frame["ego_motion"], other["ego_motion"])
            assert_array_equal(frame["lidar2img"], other["lidar2img"])


def test_motion_spans_the_frames_that_a_subset_leaves_out(build):
    subset = build(history="stream", indices=[0, 2, 3], pipeline=RAW)
    whole = build(history="stream", pipeline=RAW)
    frame = subset.read_streamed(1, previous=0, visit=0)
    assert frame["sample_token"] == "scene-0061-s2"
    assert frame["carried_token"] == "scene-0061-s0"
    assert_array_equal(
        frame_of(frame)["ego_motion"],
        frame_of(whole.read_streamed(2, previous=0, visit=0))["ego_motion"],
    )
    short = frame_of(whole.read_streamed(2, previous=1, visit=0))["ego_motion"]
    assert abs(frame_of(frame)["ego_motion"][0]) != pytest.approx(abs(short[0]), rel=0.05)


def test_a_visit_lies_in_one_world(build):
    """All frames of a visit are mirrored and turned alike; other visits otherwise; photometric draws differ."""
    dataset = build(history="stream", pipeline=flipping(max_angle=30.0, scale_range=(0.9, 1.1)))
    worlds = []
    for visit in range(6):
        results = [
            dataset.read_streamed(idx, previous=None if idx == 4 else idx - 1, visit=visit)
            for idx in (4, 5, 6)
        ]
        assert len({tuple(result["bev_aug"].ravel()) for result in results}) == 1
        assert len({result["rng"].random() for result in results}) == 3
        worlds.append(results[0]["bev_aug"])
    assert len({tuple(world.ravel()) for world in worlds}) == 6
    assert len({np.linalg.det(world) > 0 for world in worlds}) == 2


def test_neither_epoch_nor_process_matters_to_a_visit(build):
    first, second = (build(history="stream", pipeline=flipping(max_angle=30.0)) for _ in range(2))
    second.set_epoch(3)
    for visit in range(4):
        assert_array_equal(
            first.read_streamed(5, previous=4, visit=visit)["bev_aug"],
            second.read_streamed(6, previous=5, visit=visit)["bev_aug"],
        )
    other = build(history="stream", seed=1, pipeline=flipping(max_angle=30.0))
    here, there = (d.read_streamed(5, previous=4, visit=0)["bev_aug"] for d in (first, other))
    assert np.abs(here - there).max() > 1e-3


def test_a_mirrored_stream_is_a_mirrored_queue(build):
    """Frame by frame what a queue over the scene holds after the same flip, which mirrors it as a whole."""
    queue = build(queue_length=4, history="consecutive", pipeline=flipping(prob=1.0))[7]["frames"]
    dataset = build(history="stream", pipeline=flipping(prob=1.0))
    for place, idx in enumerate((4, 5, 6, 7)):
        frame = frame_of(dataset.read_streamed(idx, previous=idx - 1 if place else None, visit=place))
        assert_allclose(frame["ego_motion"], queue[place]["ego_motion"])
        assert_allclose(frame["lidar2img"], queue[place]["lidar2img"])
        for image, other in zip(frame["img"], queue[place]["img"], strict=True):
            assert_array_equal(image, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queue_length": 3}, "one frame per item, queue_length is 3; set queue_length=1"),
        ({"on_error": "skip"}, "would tear its stream"),
    ],
)
def test_options_that_do_not_go_with_streams(build, options, message):
    with pytest.raises(ValueError, match=message):
        build(history="stream", **options)
    assert not build(history="stream", test_mode=True, **options).is_streamed


def test_history_that_is_none(build):
    with pytest.raises(ValueError, match="this dataset has history='random' and test_mode=False"):
        build().read_streamed(1, previous=0, visit=0)
    dataset = build(history="stream")
    for previous in (5, 6, 3):  # itself, a later frame, another scene
        with pytest.raises(ValueError, match="no earlier frame of the scene of item 5"):
            dataset.read_streamed(5, previous=previous, visit=0)

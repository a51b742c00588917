"""The runtime's NumPy geometry against the training's, scipy and the dataset."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from perception.datasets._frames import frame_fields
from perception.runtime import geometry
from perception.runtime.frame import check_frame
from perception.runtime.geometry import (
    checked_intrinsics,
    checked_pose,
    ego_motion,
    invert_pose,
    pose_matrix,
    quaternion,
)
from perception.structures import ego_motion as trained_motion
from perception.structures import upstream_ego_motion
from tests.runtime.frames import as_info, driven, make_frame, random_pose
from tests.runtime.toy_export import CAMERAS


@pytest.mark.parametrize("seed", range(3))
def test_poses_are_scipys(seed):
    rng = np.random.default_rng(seed)
    turn = rng.normal(size=4)
    pose = pose_matrix([1, 2, 3], turn)
    np.testing.assert_allclose(pose[:3, :3], Rotation.from_quat(turn[[1, 2, 3, 0]]).as_matrix(), atol=1e-12)
    np.testing.assert_allclose(invert_pose(pose) @ pose, np.eye(4), atol=1e-12)


def test_quaternions_are_scipys_for_every_kind_of_rotation():
    """Half turns included, where the trace says nothing."""
    rng = np.random.default_rng(0)
    turns = [
        *rng.normal(size=(200, 4)),
        *np.eye(4),
        *(-np.eye(4)),
        [0, 1, 1, 0],
        [0, -1, 0, 2],
        [1e-9, 1, 0, 0],
    ]
    for turn in turns:
        matrix = pose_matrix([0, 0, 0], turn)[:3, :3]
        expected = Rotation.from_matrix(matrix).as_quat(canonical=True)[[3, 0, 1, 2]]
        np.testing.assert_allclose(quaternion(matrix), expected, atol=1e-7)


@pytest.mark.parametrize("has_can", [False, True])
@pytest.mark.parametrize("has_prev", [False, True])
def test_motion_is_that_of_training(has_can, has_prev):
    rng = np.random.default_rng(1)
    for _ in range(20):
        lidar2ego, before, now = random_pose(rng), random_pose(rng), random_pose(rng)
        before, can = (before if has_prev else None), (rng.normal(size=9) if has_can else None)
        np.testing.assert_allclose(
            ego_motion(before, now, lidar2ego, can), trained_motion(before, now, lidar2ego, can), atol=1e-9
        )
        found = ego_motion(before, now, lidar2ego, can, is_upstream=True)
        np.testing.assert_allclose(found, upstream_ego_motion(before, now, can), atol=1e-9)


def test_projections_and_motion_are_the_datasets():
    """Cameras with poses of their own times, as nuScenes has them."""
    before, now = make_frame(3), make_frame(4, can=np.arange(9.0))
    fields = frame_fields(as_info(now), as_info(before), data_root="")
    found = check_frame(now, CAMERAS)
    np.testing.assert_allclose(found.lidar2img, fields["lidar2img"], atol=1e-9)
    motion = ego_motion(before.ego2global, found.ego2global, found.lidar2ego, found.can)
    np.testing.assert_allclose(motion, fields["ego_motion"], atol=1e-9)


def test_a_point_lands_where_the_camera_sees_it():
    """By hand: 10 m ahead of a camera that looks along the vehicle, 1 m to the left of its axis."""
    looks_ahead = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    camera2ego = looks_ahead.copy()
    camera2ego[:3, 3] = (1.0, 0.0, 1.5)
    intrinsics = np.array([[100.0, 0, 50], [0, 100, 40], [0, 0, 1]])
    projection = geometry.compose_lidar2img(intrinsics, camera2ego, np.eye(4), np.eye(4))
    u, v, depth, _ = projection @ (11.0, 1.0, 1.5, 1.0)
    assert (u / depth, v / depth, depth) == pytest.approx((40.0, 40.0, 10.0))


def test_a_rotation_that_is_none_is_refused():
    pose = driven(0)
    scaled, mirrored, singular, last = pose.copy(), pose.copy(), pose.copy(), pose.T.copy()
    scaled[:3, :3] *= 1.1
    mirrored[:3, 0] *= -1
    singular[:3, 0] = 0
    for wrong, message in (
        (scaled, "p must be a rotation, but it scales or shears"),
        (mirrored, "mirrors"),
        (singular, "scales or shears"),
        (last, "must end in the row 0 0 0 1.*transposed"),
        (pose[:3], r"p must have the shape \(4, 4\), got \(3, 4\)"),
        (np.full((4, 4), np.nan), "p must be finite"),
        ([["x"] * 4] * 4, "p must be numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            checked_pose("p", wrong)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.eye(4), "shape"),
        ([[100, 0, 0], [0, 100, 0], [50, 40, 1]], "transposed"),
        ([[0, 0, 50], [0, 100, 40], [0, 0, 1]], "transposed|focal"),
        ([[100, 0, 50], [0, -100, 40], [0, 0, 1]], "positive focal lengths"),
        ([[np.inf, 0, 50], [0, 100, 40], [0, 0, 1]], "finite"),
    ],
)
def test_intrinsics_that_are_none_are_refused(matrix, message):
    with pytest.raises(ValueError, match=message):
        checked_intrinsics("k", np.asarray(matrix, float))


@pytest.mark.parametrize("rotation", [[0, 0, 0, 0], [1, 0, 0], [np.nan, 0, 0, 1]])
def test_a_quaternion_that_is_none_is_refused(rotation):
    with pytest.raises(ValueError, match=r"quaternion \(w, x, y, z\)"):
        pose_matrix([0, 0, 0], rotation)

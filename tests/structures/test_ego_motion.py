"""The motion vector and the shift that it gives, against explicit 4×4 poses."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from perception.structures import BEVGrid, bev_shift, ego_motion, upstream_ego_motion

GRID = BEVGrid((-40.0, -30.0, -5.0, 60.0, 34.0, 3.0), bev_h=16, bev_w=24)
# The real rig's: the LiDAR's y axis is the vehicle's forward x axis.
LIDAR2EGO = np.array([[0.0, 1.0, 0.0, 0.94], [-1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.84], [0, 0, 0, 1.0]])


def pose(x: float, y: float, yaw: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("z", yaw).as_matrix()
    matrix[:2, 3] = x, y
    return matrix


@pytest.mark.parametrize("seed", range(5))
def test_shift_is_the_displacement_in_lidar_axes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    previous, current = (pose(*rng.normal(size=2) * 5, rng.uniform(-math.pi, math.pi)) for _ in range(2))
    motion = torch.from_numpy(ego_motion(previous, current, LIDAR2EGO))[None]
    # The previous LiDAR origin seen from the current LiDAR is minus the displacement.
    previous_in_current = np.linalg.inv(current @ LIDAR2EGO) @ previous @ LIDAR2EGO
    expected = -previous_in_current[:2, 3] / np.array(GRID.extent[:2])
    np.testing.assert_allclose(bev_shift(motion, GRID)[0].numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("before", "after", "change"), [(179.0, -179.0, 2.0), (-179.0, 179.0, -2.0), (10.0, 40.0, 30.0)]
)
def test_yaw_change_wraps(before: float, after: float, change: float) -> None:
    motion = ego_motion(pose(0, 0, math.radians(before)), pose(0, 0, math.radians(after)), LIDAR2EGO)
    assert motion[17] == pytest.approx(change)


def test_first_frame_has_no_motion() -> None:
    motion = ego_motion(None, pose(5, 6, 0.3), LIDAR2EGO, can=np.arange(9.0))
    assert motion[:3].tolist() == [0, 0, 0]
    assert motion[3:7] == pytest.approx([math.cos(0.15), 0, 0, math.sin(0.15)])
    assert motion[7:16].tolist() == list(range(9))
    assert motion[16] == pytest.approx(0.3)
    assert motion[17] == 0


@pytest.mark.data
def test_shift_equals_upstream(parity_folder: Path) -> None:
    arrays = np.load(parity_folder / "fixtures" / "b_hist_16x24_asym.npz", allow_pickle=False)
    motion = torch.from_numpy(arrays["inputs/frame0/can_bus"]).double().reshape(1, 18)
    np.testing.assert_allclose(bev_shift(motion, GRID).numpy(), arrays["outputs/enc/shift"], atol=3e-6)


def test_upstreams_vector_differs_where_it_is_said_to() -> None:
    before, now = pose(10, 20, math.radians(-1.0)), pose(13, 24, math.radians(2.0))
    ours, upstream = ego_motion(before, now, LIDAR2EGO), upstream_ego_motion(before, now)
    assert upstream[:3].tolist() == [3, 4, 0]  # the ego's origin; the LiDAR turns about it
    assert abs(ours[:2] - upstream[:2]).max() > 0.01
    assert upstream[3:7] == pytest.approx([math.cos(math.radians(1.0))] * 4)
    assert upstream[16] == pytest.approx(ours[16]) == pytest.approx(math.radians(2.0))
    assert (ours[17], upstream[17]) == (pytest.approx(3.0), pytest.approx(-357.0))
    behind = pose(0, 0, math.radians(-10.0))
    assert upstream_ego_motion(None, behind)[16] == pytest.approx(math.radians(350.0))
    assert upstream_ego_motion(None, behind, np.arange(9.0))[7:].tolist()[:9] == list(range(9))


@pytest.mark.data
def test_upstreams_vector_is_that_of_the_official_detector(parity_folder: Path) -> None:
    arrays = np.load(parity_folder / "fixtures" / "h_full_detector_mini.npz", allow_pickle=False)
    previous = None
    for frame in range(3):
        absolute = arrays[f"inputs/frame{frame}/can_bus_absolute"]
        current = pose(absolute[0], absolute[1], absolute[16])
        motion = upstream_ego_motion(previous, current, absolute[7:16])
        expected = arrays[f"outputs/train/frame{frame}/can_bus_delta"]
        assert (
            len(set(expected[3:7])) == len(set(motion[3:7])) == 1
        )  # one number in all four; drawn, in the fixture
        motion[3:7] = expected[3:7]
        np.testing.assert_allclose(motion, expected, atol=1e-9)
        previous = current

"""How the vehicle moved between two frames, in the layout of upstream's `can_bus` vector.

| entries | meaning |
| --- | --- |
| 0…2 | translation since the previous frame, global axes, metres |
| 3…6 | quaternion (w, x, y, z) of ego → global |
| 7…9, 10…12, 13…15 | acceleration, rotation rate, velocity from the CAN expansion; zeros without it |
| 16 | absolute heading, radians, counter-clockwise from global x |
| 17 | change of heading since the previous frame, degrees, in (−180, 180] |

Two deliberate differences from upstream: translation and heading are those of the *LiDAR* (its origin, and its y axis),
because the bird's-eye-view grid is centred on it; and all four quaternion entries are filled (upstream wrote w
into each). `upstream_ego_motion` is upstream's vector, for weights that were trained with it.
"""

import math

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from perception.structures.grids import BEVGrid

EGO_MOTION_SIZE = 18
TRANSLATION = slice(0, 3)
QUATERNION = slice(3, 7)
CAN = slice(7, 16)
YAW = 16
YAW_CHANGE_DEGREES = 17


def heading(lidar2global: np.ndarray) -> float:
    """Direction of the LiDAR's forward axis (y), radians counter-clockwise from global x."""
    return math.atan2(lidar2global[1, 1], lidar2global[0, 1])


def ego_motion(
    ego2global_prev: np.ndarray | None,
    ego2global_cur: np.ndarray,
    lidar2ego: np.ndarray,
    can: np.ndarray | None = None,
) -> np.ndarray:
    """The motion vector of one frame.

    Args:
        ego2global_prev: (4, 4) pose of the previous frame, or None for the first one (then no motion).
        ego2global_cur: (4, 4) pose of this frame.
        lidar2ego: (4, 4) calibration.
        can: (9,) acceleration, rotation rate, velocity, or None.

    Returns:
        (18,), float64, as the module's table says.

    Example:
        >>> moved = np.eye(4)
        >>> moved[0, 3] = 2.0
        >>> ego_motion(np.eye(4), moved, np.eye(4))[:3].tolist()
        [2.0, 0.0, 0.0]
    """
    motion = np.zeros(EGO_MOTION_SIZE)
    current = ego2global_cur @ lidar2ego
    quaternion = Rotation.from_matrix(ego2global_cur[:3, :3]).as_quat(canonical=True)  # x, y, z, w
    motion[QUATERNION] = quaternion[[3, 0, 1, 2]]
    if can is not None:
        motion[CAN] = can
    motion[YAW] = heading(current)
    if ego2global_prev is not None:
        previous = ego2global_prev @ lidar2ego
        motion[TRANSLATION] = current[:3, 3] - previous[:3, 3]
        change = math.degrees(motion[YAW] - heading(previous))
        motion[YAW_CHANGE_DEGREES] = 180.0 - (180.0 - change) % 360.0
    return motion


def upstream_ego_motion(
    ego2global_prev: np.ndarray | None, ego2global_cur: np.ndarray, can: np.ndarray | None = None
) -> np.ndarray:
    """The motion vector as upstream's data set makes it.

    *Source*: BEVFormer's `get_data_info` and `union2one`: translation of the ego's origin; w in all four entries of the
    quaternion; heading of the ego's x axis in [0, 2π) and its change in degrees, near ±360 where the heading wraps.

    Args:
        ego2global_prev: (4, 4) pose of the previous frame, or None for the first one (then no motion).
        ego2global_cur: (4, 4) pose of this frame.
        can: (9,) acceleration, rotation rate, velocity, or None.

    Returns:
        (18,), float64.

    Example:
        >>> upstream_ego_motion(None, np.eye(4))[3:7].tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    motion = np.zeros(EGO_MOTION_SIZE)
    motion[QUATERNION] = Rotation.from_matrix(ego2global_cur[:3, :3]).as_quat(canonical=True)[3]
    if can is not None:
        motion[CAN] = can
    motion[YAW] = _ego_heading(ego2global_cur)
    if ego2global_prev is not None:
        motion[TRANSLATION] = ego2global_cur[:3, 3] - ego2global_prev[:3, 3]
        motion[YAW_CHANGE_DEGREES] = math.degrees(motion[YAW] - _ego_heading(ego2global_prev))
    return motion


def _ego_heading(ego2global: np.ndarray) -> float:
    return math.atan2(ego2global[1, 0], ego2global[0, 0]) % (2 * math.pi)


def bev_shift(motion: Tensor, grid: BEVGrid) -> Tensor:
    """Displacement since the previous frame, in this frame's LiDAR axes, as a fraction of the grid.

    *Source*: BEVFormer, `get_bev_features`; (x, y) = t·(sin a, cos a) with a = heading − direction of travel.

    Args:
        motion: (B, 18), as `ego_motion` returns it.
        grid: the bird's-eye-view grid.

    Returns:
        (B, 2): (x, y) in units of the grid's extent; 0.1 means a tenth of the grid.
    """
    distance = (motion[:, 0] ** 2 + motion[:, 1] ** 2).sqrt()  # torch.hypot has no ONNX operator
    angle = motion[:, YAW] - torch.atan2(motion[:, 1], motion[:, 0])
    return torch.stack(
        [distance * angle.sin() / grid.extent[0], distance * angle.cos() / grid.extent[1]], dim=-1
    )

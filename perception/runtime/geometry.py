"""Poses, cameras and motion in NumPy: 4×4 matrices that act on column vectors, named `<source>2<target>`.

The same rules as in `perception.structures` and `perception.datasets`, which need torch and more; a test holds the two
together.
"""

import math
from collections.abc import Sequence

import numpy as np

EGO_MOTION_SIZE = 18
_ROTATION_TOLERANCE = 1e-3


def pose_matrix(
    translation: Sequence[float] | np.ndarray, rotation: Sequence[float] | np.ndarray
) -> np.ndarray:
    """A pose as nuScenes' tables give it.

    Args:
        translation: (3,), metres.
        rotation: (4,), quaternion (w, x, y, z); need not have length 1.

    Returns:
        (4, 4), float64.

    Raises:
        ValueError: wrong shapes, a value that is not finite, or a quaternion of zeros.

    Example:
        >>> pose_matrix([1.0, 2.0, 3.0], [1.0, 0.0, 0.0, 0.0])[:3, 3].tolist()
        [1.0, 2.0, 3.0]
    """
    where, turn = np.asarray(translation, np.float64), np.asarray(rotation, np.float64)
    is_good = where.shape == (3,) and turn.shape == (4,) and np.isfinite([*where, *turn]).all()
    if not is_good or not np.linalg.norm(turn) > 0:
        raise ValueError(
            "a pose needs a translation of 3 and a quaternion (w, x, y, z) of 4 finite numbers, not all of them 0, got "
            f"{np.asarray(translation).tolist()} and {np.asarray(rotation).tolist()}."
        )
    w, x, y, z = turn / np.linalg.norm(turn)
    pose = np.eye(4)
    pose[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    pose[:3, 3] = where
    return pose


def invert_pose(pose: np.ndarray) -> np.ndarray:
    """Inverse of a rigid (4, 4) pose."""
    inverse = np.eye(4)
    inverse[:3, :3] = pose[:3, :3].T
    inverse[:3, 3] = -pose[:3, :3].T @ pose[:3, 3]
    return inverse


def checked_pose(name: str, value: np.ndarray) -> np.ndarray:
    """A pose as float64, if it is one.

    Args:
        name: what it is, for the message.
        value: (4, 4).

    Raises:
        ValueError: another shape, values that are not finite, a last row that is not 0 0 0 1, or a rotation part that
            is none (scaled, sheared, mirrored or singular).
    """
    pose = _checked_array(name, value, (4, 4))
    if not np.allclose(pose[3], (0, 0, 0, 1), atol=1e-6):
        raise ValueError(
            f"{name} must end in the row 0 0 0 1, got {pose[3].tolist()}; is the matrix transposed? It acts on column "
            "vectors."
        )
    rotation = pose[:3, :3]
    error = float(np.abs(rotation @ rotation.T - np.eye(3)).max())
    if error > _ROTATION_TOLERANCE or np.linalg.det(rotation) < 0:
        kind = "mirrors" if error <= _ROTATION_TOLERANCE else "scales or shears"
        raise ValueError(
            f"the upper left 3×3 of {name} must be a rotation, but it {kind} (R·Rᵀ differs from 1 by {error:.3g}, "
            f"determinant {np.linalg.det(rotation):.3g}); `pose_matrix` makes one of a translation and a quaternion."
        )
    return pose


def checked_intrinsics(name: str, value: np.ndarray) -> np.ndarray:
    """Camera intrinsics as float64, if they are such.

    Args:
        name: what they are, for the message.
        value: (3, 3), pixels.

    Raises:
        ValueError: another shape, values that are not finite, a last row that is not 0 0 1, or a focal length that is
            not positive.
    """
    matrix = _checked_array(name, value, (3, 3))
    if not np.allclose(matrix[2], (0, 0, 1), atol=1e-6) or abs(matrix[1, 0]) > 1e-6 * abs(matrix[0, 0]):
        raise ValueError(
            f"{name} must have the form [[fx, s, cx], [0, fy, cy], [0, 0, 1]], got {matrix.tolist()}; is it transposed?"
        )
    if min(matrix[0, 0], matrix[1, 1]) <= 0:
        raise ValueError(
            f"{name} must have positive focal lengths, got fx = {matrix[0, 0]:g} and fy = {matrix[1, 1]:g} pixels; the "
            "matrix is singular or mirrored."
        )
    return matrix


def _checked_array(name: str, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numbers of shape {shape}, got {type(value).__name__}.") from error
    if array.shape != shape:
        raise ValueError(f"{name} must have the shape {shape}, got {array.shape}.")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got {array.tolist()}.")
    return array


def compose_lidar2img(
    intrinsics: np.ndarray, camera2ego: np.ndarray, camera_ego2global: np.ndarray, lidar2global: np.ndarray
) -> np.ndarray:
    """Projection of LiDAR points into an image, the way the vehicle moved between the two stamps included.

    Args:
        intrinsics: (3, 3), pixels.
        camera2ego: (4, 4), calibration.
        camera_ego2global: (4, 4), pose of the vehicle when the image was taken.
        lidar2global: (4, 4), of the LiDAR at the frame's own time.

    Returns:
        (4, 4), float64: homogeneous LiDAR metres → (u·d, v·d, d, 1), pixels times depth.
    """
    projection = np.eye(4)
    projection[:3, :3] = intrinsics
    return projection @ invert_pose(camera_ego2global @ camera2ego) @ lidar2global


def quaternion(rotation: np.ndarray) -> np.ndarray:
    """The quaternion (w, x, y, z) of a rotation matrix, length 1, its first number that is not 0 positive.

    Args:
        rotation: (3, 3).

    Returns:
        (4,), float64.

    Example:
        >>> quaternion(np.diag([-1.0, -1.0, 1.0])).tolist()
        [0.0, 0.0, 0.0, 1.0]
    """
    # The largest of the four is found from the diagonal, and the others are divided by it: exact for every rotation.
    m = np.asarray(rotation, np.float64)
    squares = np.array([np.trace(m), *np.diag(m)])
    largest = int(squares.argmax())
    if largest == 0:
        found = np.array([1 + squares[0], m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]])
    else:
        i = largest - 1
        j, k = (i + 1) % 3, (i + 2) % 3
        found = np.zeros(4)
        found[0] = m[k, j] - m[j, k]
        found[1 + i] = 1 + 2 * m[i, i] - squares[0]
        found[1 + j], found[1 + k] = m[j, i] + m[i, j], m[k, i] + m[i, k]
    found = found / np.linalg.norm(found)
    sign = np.sign(found[np.flatnonzero(found)[0]])
    return found * sign + 0.0


def ego_motion(
    ego2global_prev: np.ndarray | None,
    ego2global_cur: np.ndarray,
    lidar2ego: np.ndarray,
    can: np.ndarray | None = None,
    *,
    is_upstream: bool = False,
) -> np.ndarray:
    """How the vehicle moved since the previous frame, as the graph takes it.

    | entries | meaning |
    | --- | --- |
    | 0…2 | translation since the previous frame, global axes, metres |
    | 3…6 | quaternion (w, x, y, z) of ego → global |
    | 7…15 | acceleration, rotation rate, velocity from the CAN bus; zeros without it |
    | 16 | absolute heading, radians, counter-clockwise from global x |
    | 17 | change of heading since the previous frame, degrees |

    Args:
        ego2global_prev: (4, 4) pose of the previous frame, or None for the first one (then no motion).
        ego2global_cur: (4, 4) pose of this frame.
        lidar2ego: (4, 4) calibration.
        can: (9,), or None.
        is_upstream: as BEVFormer's own data set has it: of the ego's origin and x axis instead of the LiDAR's origin
            and y axis, w in all four entries of the quaternion, and a change of heading that may be near ±360.

    Returns:
        (18,), float64.

    Example:
        >>> moved = np.eye(4)
        >>> moved[0, 3] = 2.0
        >>> ego_motion(np.eye(4), moved, np.eye(4))[:3].tolist()
        [2.0, 0.0, 0.0]
    """
    motion = np.zeros(EGO_MOTION_SIZE)
    turn = quaternion(ego2global_cur[:3, :3])
    motion[3:7] = turn[0] if is_upstream else turn
    if can is not None:
        motion[7:16] = can
    mount = np.eye(4) if is_upstream else lidar2ego
    current = ego2global_cur @ mount
    motion[16] = _heading(current, is_upstream)
    if ego2global_prev is not None:
        previous = ego2global_prev @ mount
        motion[:3] = current[:3, 3] - previous[:3, 3]
        change = math.degrees(motion[16] - _heading(previous, is_upstream))
        motion[17] = change if is_upstream else 180.0 - (180.0 - change) % 360.0
    return motion


def _heading(pose: np.ndarray, is_upstream: bool) -> float:
    if is_upstream:
        return math.atan2(pose[1, 0], pose[0, 0]) % (2 * math.pi)
    return math.atan2(pose[1, 1], pose[0, 1])

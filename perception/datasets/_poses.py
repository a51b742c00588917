"""Rigid poses as 4×4 float64 matrices, named `<source>2<target>`, acting on column vectors."""

from collections.abc import Sequence

import numpy as np


def rotation_matrices(quaternions: np.ndarray) -> np.ndarray:
    """Rotations of quaternions.

    Args:
        quaternions: (n, 4), (w, x, y, z); need not have length 1.

    Returns:
        (n, 3, 3); NaN where a quaternion is zero.
    """
    # Written out: scipy's Rotation costs 0.3 ms a call, which an index of 34,000 samples needs half a million times.
    quaternions = np.asarray(quaternions, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        w, x, y, z = (quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.array(rows).transpose(2, 0, 1)


def pose_matrix(translation: Sequence[float], rotation: Sequence[float]) -> np.ndarray:
    """A pose as nuScenes' tables give it.

    Args:
        translation: (3,), metres.
        rotation: (4,), quaternion (w, x, y, z).

    Returns:
        (4, 4).

    Example:
        >>> pose_matrix([1.0, 2.0, 3.0], [1.0, 0.0, 0.0, 0.0])[:3, 3].tolist()
        [1.0, 2.0, 3.0]
    """
    pose = np.eye(4)
    pose[:3, :3] = rotation_matrices(np.asarray([rotation]))[0]
    pose[:3, 3] = translation
    return pose

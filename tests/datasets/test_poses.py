"""Poses against SciPy's rotations."""

import numpy as np
from scipy.spatial.transform import Rotation

from perception.datasets._poses import pose_matrix, rotation_matrices
from perception.runtime import invert_pose


def test_rotations_equal_scipys():
    quaternions = np.random.default_rng(0).normal(size=(50, 4)) * 3
    expected = Rotation.from_quat(quaternions[:, [1, 2, 3, 0]]).as_matrix()
    np.testing.assert_allclose(rotation_matrices(quaternions), expected, atol=1e-14)
    assert np.isnan(rotation_matrices(np.zeros((1, 4)))).all()


def test_inverse():
    pose = pose_matrix([1.0, -2.0, 3.0], [0.5, 0.1, -0.7, 0.3])
    np.testing.assert_allclose(invert_pose(pose) @ pose, np.eye(4), atol=1e-14)

"""A camera that looks forward from the LiDAR, and a box in front of it."""

import numpy as np
import pytest

FOCAL, WIDTH, HEIGHT = 100.0, 200, 120


def look(direction=0.0):
    """(4, 4) LiDAR → image of a camera at the origin, turned from +y by `direction` (radians, to the left)."""
    cos, sin = np.cos(direction), np.sin(direction)
    right, forward = np.array([cos, sin, 0.0]), np.array([-sin, cos, 0.0])
    down = np.array([0.0, 0.0, -1.0])
    matrix = np.eye(4)
    matrix[0, :3] = FOCAL * right + WIDTH / 2 * forward
    matrix[1, :3] = FOCAL * down + HEIGHT / 2 * forward
    matrix[2, :3] = forward
    return matrix


@pytest.fixture
def forward():
    return look()


@pytest.fixture
def turned():
    return look


@pytest.fixture
def image():
    return np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture
def box():
    """2 m cube, 10 m ahead, heading to the car's right: x −1...1, y 9...11, z −1...1."""
    return np.array([[0.0, 10.0, -1.0, 2.0, 2.0, 2.0, 0.0, 0.0, 0.0]])

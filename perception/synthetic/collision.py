"""Keeping boxes apart: separating-axis tests over whole trajectories."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from perception.synthetic.motion import Trajectory

Array = NDArray[np.float64]
STRIDE = 4  # every fourth stored pose is tested: 0.2 s


def rectangles_overlap(a: Array, b: Array) -> NDArray[np.bool_]:
    """Test oriented rectangles pairwise.

    Args:
        a: (..., 5) x, y, length, width, yaw.
        b: (..., 5) likewise, broadcastable.

    Returns:
        (...) whether the interiors overlap.

    Example:
        >>> one, two = np.array([0.0, 0, 4, 2, 0]), np.array([0.0, 2.5, 4, 2, 0])
        >>> bool(rectangles_overlap(one, two)), bool(rectangles_overlap(one, two + [0, -1, 0, 0, 0]))
        (False, True)
    """
    dx, dy = b[..., 0] - a[..., 0], b[..., 1] - a[..., 1]
    overlap = np.ones(dx.shape, dtype=bool)
    for owner in (a, b):
        for turn in (0.0, np.pi / 2):
            ux, uy = np.cos(owner[..., 4] + turn), np.sin(owner[..., 4] + turn)
            reach = np.zeros(dx.shape)
            for r in (a, b):
                c, s = np.cos(r[..., 4]), np.sin(r[..., 4])
                reach = (
                    reach + r[..., 2] / 2 * np.abs(c * ux + s * uy) + r[..., 3] / 2 * np.abs(c * uy - s * ux)
                )
            overlap &= np.abs(dx * ux + dy * uy) < reach
    return overlap


class Occupancy:
    """The space that accepted objects take up over a scene's time."""

    def __init__(self, num_times: int) -> None:
        self._poses = np.empty((0, len(range(0, num_times, STRIDE)), 5))
        self._active = np.empty((0, self._poses.shape[1]), dtype=bool)

    @staticmethod
    def _tube(trajectory: Trajectory, length: float, width: float, ahead: float) -> Array:
        xy, yaw = trajectory.xy[::STRIDE], trajectory.yaw[::STRIDE]
        centre = xy + ahead * np.stack([np.cos(yaw), np.sin(yaw)], -1)
        size = np.broadcast_to([length, width], xy.shape)
        return np.concatenate([centre, size, yaw[:, None]], axis=1)

    def is_free(self, trajectory: Trajectory, length: float, width: float, gap: float) -> bool:
        """Whether an object would keep at least `gap` metres (along its own axes) from all others at all times."""
        tube = self._tube(trajectory, length + 2 * gap, width + 2 * gap, 0.0)
        both = self._active & trajectory.active[::STRIDE][None]
        reach = 0.5 * (
            np.hypot(tube[:, 2], tube[:, 3])[None] + np.hypot(self._poses[..., 2], self._poses[..., 3])
        )
        distance = np.hypot(self._poses[..., 0] - tube[None, :, 0], self._poses[..., 1] - tube[None, :, 1])
        which, when = np.nonzero(both & (distance < reach))
        if not len(which):
            return True
        return not rectangles_overlap(tube[when], self._poses[which, when]).any()

    def add(self, trajectory: Trajectory, length: float, width: float, *, ahead: float = 0.0) -> None:
        """Take up space; `ahead` shifts the box's middle forward of the trajectory's point, metres."""
        self._poses = np.concatenate([self._poses, self._tube(trajectory, length, width, ahead)[None]])
        self._active = np.concatenate([self._active, trajectory.active[None, ::STRIDE]])

"""A 32-beam LiDAR, ray-cast against the objects' boxes and the ground."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from perception.utils.jit import kernel

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

NUM_BEAMS = 32
NUM_AZIMUTHS = 1084  # 0.33 degrees apart, as the real sensor
THINNING = (
    4  # of the returns from ground and surroundings only every fourth column is kept, to keep the world small
)
MAX_RANGE = 80.0
SHRINK = (
    0.03  # boxes are cast this much smaller on each side, so that their points lie clearly inside, metres
)


def ray_directions() -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Return (R, 3) unit directions in the LiDAR frame and (R,) ring numbers of one sweep."""
    elevation = np.deg2rad(np.linspace(-30.67, 10.67, NUM_BEAMS))
    azimuth = np.arange(NUM_AZIMUTHS) * (2 * np.pi / NUM_AZIMUTHS)
    e, a = (v.reshape(-1) for v in np.meshgrid(elevation, azimuth, indexing="ij"))
    directions = np.stack([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)], -1)
    return directions, np.repeat(np.arange(NUM_BEAMS, dtype=np.float32), NUM_AZIMUTHS)


@kernel
def cast(origin: F64, directions: F64, boxes: F64, max_range: float, distances: F64, hits: I64) -> None:
    """Cast rays in the global frame.

    origin: (3,). directions: (R, 3) unit vectors. boxes: (B, 7) x, y, z of the middle, length, width, height, yaw.
    Writes `distances` (R,), -1 for no return, and `hits` (R,): box index, or -1 for the ground.
    """
    num = boxes.shape[0]
    for r in range(directions.shape[0]):
        best, which = max_range, -2
        if directions[r, 2] < -1e-6:
            t = -origin[2] / directions[r, 2]
            if t < best:
                best, which = t, -1
        for b in range(num):
            dx, dy, dz = boxes[b, 0] - origin[0], boxes[b, 1] - origin[1], boxes[b, 2] - origin[2]
            radius2 = 0.25 * (boxes[b, 3] ** 2 + boxes[b, 4] ** 2 + boxes[b, 5] ** 2)
            along = dx * directions[r, 0] + dy * directions[r, 1] + dz * directions[r, 2]
            if dx * dx + dy * dy + dz * dz - along * along > radius2:
                continue
            cos, sin = np.cos(boxes[b, 6]), np.sin(boxes[b, 6])
            near, far = 1e-3, best
            for axis in range(3):
                if axis == 0:
                    o, d = -(cos * dx + sin * dy), cos * directions[r, 0] + sin * directions[r, 1]
                elif axis == 1:
                    o, d = -(-sin * dx + cos * dy), -sin * directions[r, 0] + cos * directions[r, 1]
                else:
                    o, d = -dz, directions[r, 2]
                half = 0.5 * boxes[b, 3 + axis]
                if abs(d) < 1e-12:
                    if abs(o) > half:
                        far = -1.0
                    continue
                t0, t1 = (-half - o) / d, (half - o) / d
                if t0 > t1:
                    t0, t1 = t1, t0
                near, far = max(near, t0), min(far, t1)
            if near < far:
                best, which = near, b
        distances[r] = best if which > -2 else -1.0
        hits[r] = which


def scan(
    rng: np.random.Generator, lidar2global: NDArray[np.float64], boxes: NDArray[np.float64], num_objects: int
) -> NDArray[np.float32]:
    """Take one sweep: all returns from objects, and every fourth column of those from anything else.

    Args:
        rng: source of the intensities.
        lidar2global: (4, 4).
        boxes: (B, 7) x, y, z of the middle, length, width, height, yaw; global frame, metres, radians.
        num_objects: the first boxes are objects, the others surroundings.

    Returns:
        (P, 5) x, y, z (LiDAR frame, metres), intensity (0 to 255), ring (0 to 31).
    """
    directions, rings = ray_directions()
    shrunk = boxes.copy()
    shrunk[:, 3:6] -= np.minimum(2 * SHRINK, 0.2 * boxes[:, 3:6])
    distances = np.empty(len(directions))
    hits = np.empty(len(directions), dtype=np.int64)
    world = np.ascontiguousarray(directions @ lidar2global[:3, :3].T)
    cast(np.ascontiguousarray(lidar2global[:3, 3]), world, shrunk, MAX_RANGE, distances, hits)
    column = np.arange(len(directions)) % NUM_AZIMUTHS
    is_object = (hits >= 0) & (hits < num_objects)
    keep = (distances > 0.0) & (is_object | (column % THINNING == 0))
    intensity = np.where(hits < 0, 12.0, 40.0) + rng.uniform(0.0, 20.0, len(hits))
    points = np.concatenate(
        [directions * distances[:, None], np.floor(intensity)[:, None], rings[:, None]], axis=1
    )
    return np.ascontiguousarray(points[keep], dtype=np.float32)


def count_points(
    points: NDArray[np.float32], lidar2global: NDArray[np.float64], boxes: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Count the points (P, 5) of a sweep inside each of the boxes (B, 7, as for `scan`); returns (B,)."""
    xyz = points[:, :3].astype(np.float64) @ lidar2global[:3, :3].T + lidar2global[:3, 3]
    counts = np.zeros(len(boxes), dtype=np.int64)
    for k, (x, y, z, length, width, height, yaw) in enumerate(boxes):
        dx, dy = xyz[:, 0] - x, xyz[:, 1] - y
        along, across = np.cos(yaw) * dx + np.sin(yaw) * dy, -np.sin(yaw) * dx + np.cos(yaw) * dy
        inside = (
            (np.abs(along) <= length / 2)
            & (np.abs(across) <= width / 2)
            & (np.abs(xyz[:, 2] - z) <= height / 2)
        )
        counts[k] = int(inside.sum())
    return counts

"""Inputs of the comparison: random features and history, and the geometry of six cameras around a car.

Legend: B batch, N = 6 cameras, Q BEV cells, C channels.
"""

import os
from pathlib import Path

import numpy as np

FEATURES = (6, 256, 15, 25)
IMAGE_SHAPE = (480, 800)
BEV = (2500, 256)
PARITY_FOLDER = Path(os.environ.get("PERCEPTION_PARITY", Path("..") / "shared" / "parity"))
_YAWS = (0.0, -55.0, 55.0, 180.0, 110.0, -110.0)  # degrees, left of ahead: nuScenes' order of cameras
_FOCALS = (633.0, 633.0, 633.0, 404.0, 633.0, 633.0)
_CENTRE = (408.0, 245.0)


def write_inputs(file: Path, *, batch: int, geometry: Path | None) -> str:
    """Write the inputs of `batch` samples, the same for the same arguments.

    Args:
        file: `.npz` to write.
        batch: B.
        geometry: `bench_inputs.npz` of the parity fixtures: cameras and ego motion; None: cameras like nuScenes'.

    Returns:
        Where the geometry comes from, in words.
    """
    rng = np.random.default_rng(0)
    if geometry is None:
        lidar2img, can_bus, source = surround_cameras(), ego_motion(), "cameras like nuScenes'"
    else:
        with np.load(geometry, allow_pickle=False) as arrays:
            lidar2img, can_bus = arrays["tiny/lidar2img"], arrays["can_bus"]
        source = geometry.name
    np.savez(
        file,
        features=rng.standard_normal((batch, *FEATURES), dtype=np.float32),
        prev_bev=rng.standard_normal((batch, *BEV), dtype=np.float32),
        lidar2img=np.repeat(lidar2img[None], batch, axis=0).astype(np.float32),
        can_bus=np.repeat(can_bus[None], batch, axis=0).astype(np.float64),
        image_shape=np.array(IMAGE_SHAPE),
    )
    return source


def surround_cameras() -> np.ndarray:
    """(6, 4, 4), LiDAR metres (x right, y ahead, z up) → pixels of an 800 × 450 image padded to 800 × 480."""
    matrices = []
    for yaw, focal in zip(np.deg2rad(_YAWS), _FOCALS, strict=True):
        ahead = np.array([-np.sin(yaw), np.cos(yaw), 0.0])
        right = np.array([np.cos(yaw), np.sin(yaw), 0.0])
        axes = np.stack([right, [0.0, 0.0, -1.0], ahead])  # camera: x right, y down, z ahead
        position = 0.8 * ahead + np.array([0.0, 0.0, -0.3])
        extrinsics = np.hstack([axes, -(axes @ position)[:, None]])
        intrinsics = np.array([[focal, 0, _CENTRE[0]], [0, focal, _CENTRE[1]], [0, 0, 1]])
        matrices.append(np.vstack([intrinsics @ extrinsics, [0, 0, 0, 1]]))
    return np.stack(matrices)


def ego_motion() -> np.ndarray:
    """(18,): 4 m and 2 degrees since the previous frame."""
    motion = np.zeros(18)
    motion[:2] = 3.9, 0.9
    motion[16], motion[17] = np.deg2rad(13.0), 2.0
    return motion

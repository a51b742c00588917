"""Frames of a made-up vehicle, and an index entry of the same numbers for our own dataset's code."""

import numpy as np

from perception.runtime import Camera, Frame, invert_pose, pose_matrix
from tests.runtime.toy_export import CAMERAS


def random_pose(rng: np.random.Generator, spread: float = 2.0) -> np.ndarray:
    return pose_matrix(rng.normal(size=3) * spread, rng.normal(size=4))


def driven(step: int, *, along: float = 3.0) -> np.ndarray:
    """Pose of a vehicle on a curve, slightly tilted."""
    angle = 0.4 + 0.1 * step
    half = angle / 2
    return pose_matrix(
        [100.0 + along * step, 50.0 + 0.5 * step, 1.0], [np.cos(half), 0.01, -0.02, np.sin(half)]
    )


def make_frame(step: int, *, seed: int = 0, ego2global: np.ndarray | None = None, **changes) -> Frame:
    """A frame of 6 cameras, 0.5 s after the one before it."""
    rng = np.random.default_rng(seed)
    cameras = {}
    for number, name in enumerate(CAMERAS):
        intrinsics = np.array([[6.0 + number, 0, 2.5], [0, 6.0, 2.0], [0, 0, 1]])
        pose = driven(step) if ego2global is None else ego2global
        cameras[name] = Camera(
            image=np.random.default_rng(100 * step + number).integers(0, 256, (4, 5, 3), np.uint8),
            intrinsics=intrinsics,
            camera2ego=random_pose(rng),
            ego2global=pose @ pose_matrix([0.01 * number, 0, 0], [1, 0, 0, 0.001]),
        )
    values = {
        "cameras": cameras,
        "lidar2ego": pose_matrix([0.94, 0.0, 1.84], [0.7077955, -0.006492, 0.010646, -0.7063073]),
        "ego2global": driven(step) if ego2global is None else ego2global,
        "timestamp": 1000.0 + 0.5 * step,
    }
    return Frame(**{**values, **changes})


def as_info(frame: Frame) -> dict:
    """The frame as `perception data prepare` would write it."""
    lidar2global = frame.ego2global @ frame.lidar2ego
    images = {}
    for name, camera in frame.cameras.items():
        own = frame.ego2global if camera.ego2global is None else camera.ego2global
        images[name] = {
            "img_path": f"{name}.jpg",
            "cam2img": camera.intrinsics.tolist(),
            "lidar2cam": invert_pose(own @ camera.camera2ego) @ lidar2global,
        }
    can = {} if frame.can is None else {"can_bus": list(frame.can)}
    return {
        "token": "sample",
        "ego2global": frame.ego2global,
        "images": images,
        "lidar_points": {"lidar2ego": frame.lidar2ego},
        **can,
    }

"""The camera rig: intrinsics and extrinsics of one real nuScenes vehicle, and rigid-transform helpers.

The numbers are the calibration of scene-0061 (nuScenes v1.0, real vehicle n015); the intrinsics are multiplied by
0.44, which takes the real 1600 x 900 image to 704 x 396. Frames: ego x forward, y left, z up, origin on the ground
below the rear axle; camera x right, y down, z forward; LiDAR x right, y forward, z up. All lengths in metres.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IMAGE_SCALE = 0.44
IMAGE_WIDTH = 704
IMAGE_HEIGHT = 396
EGO_LENGTH = 4.08
EGO_WIDTH = 1.73
EGO_CENTRE_AHEAD = 1.3  # the ego origin is the rear axle; the body's centre lies this far ahead of it

LIDAR_TRANSLATION = (0.943713, 0.0, 1.84023)
LIDAR_ROTATION = (0.707795512, -0.006492242, 0.010646215, -0.706307314)


@dataclass(frozen=True)
class Camera:
    """One camera of the rig.

    Attributes:
        name: nuScenes channel.
        focal: focal length of the full-size image, pixels (equal in x and y).
        centre: (cx, cy) of the full-size image, pixels.
        translation: (x, y, z) of the camera in the ego frame, metres.
        rotation: quaternion (w, x, y, z), camera to ego.
        delay_us: usual exposure time relative to the LiDAR stamp, microseconds (negative: earlier).
    """

    name: str
    focal: float
    centre: tuple[float, float]
    translation: tuple[float, float, float]
    rotation: tuple[float, float, float, float]
    delay_us: int

    def intrinsic(self) -> NDArray[np.float64]:
        """Return the (3, 3) intrinsic matrix in pixels of the 704 x 396 image."""
        f = self.focal * IMAGE_SCALE
        cx, cy = self.centre[0] * IMAGE_SCALE, self.centre[1] * IMAGE_SCALE
        return np.array([[f, 0.0, cx], [0.0, f, cy], [0.0, 0.0, 1.0]])

    def cam2ego(self) -> NDArray[np.float64]:
        """Return the (4, 4) transform from the camera to the ego frame."""
        return rigid(self.rotation, self.translation)


CAMERAS: tuple[Camera, ...] = (
    Camera(
        "CAM_FRONT",
        1266.4172,
        (816.267, 491.5071),
        (1.700791, 0.015946, 1.510958),
        (0.499801543, -0.503031616, 0.499779811, -0.497370838),
        -35491,
    ),
    Camera(
        "CAM_FRONT_RIGHT",
        1260.8474,
        (807.9682, 495.3344),
        (1.550848, -0.493405, 1.495748),
        (0.206034793, -0.202694054, 0.682450784, -0.671361089),
        -27612,
    ),
    Camera(
        "CAM_FRONT_LEFT",
        1272.5979,
        (826.6155, 479.7517),
        (1.523878, 0.494631, 1.509328),
        (0.675726504, -0.673626653, 0.212140149, -0.211228269),
        -43107,
    ),
    Camera(
        "CAM_BACK",
        809.221,
        (829.2196, 481.7784),
        (0.028326, 0.003451, 1.579103),
        (0.503787267, -0.497402498, -0.494185022, 0.50454961),
        -10426,
    ),
    Camera(
        "CAM_BACK_LEFT",
        1256.7415,
        (792.1126, 492.7757),
        (1.035691, 0.484795, 1.59097),
        (0.692418559, -0.703161942, -0.11648343, 0.112033181),
        -528,
    ),
    Camera(
        "CAM_BACK_RIGHT",
        1259.5137,
        (807.2529, 501.1958),
        (1.014878, -0.480568, 1.562395),
        (0.1228098, -0.132400842, -0.700430582, 0.690496031),
        -20058,
    ),
)


def quaternion_matrix(rotation: tuple[float, float, float, float]) -> NDArray[np.float64]:
    """Return the (3, 3) rotation matrix of a quaternion (w, x, y, z); it is normalised first."""
    w, x, y, z = np.asarray(rotation, dtype=np.float64) / np.linalg.norm(rotation)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def rigid(
    rotation: tuple[float, float, float, float], translation: tuple[float, float, float]
) -> NDArray[np.float64]:
    """Return the (4, 4) transform of a quaternion (w, x, y, z) and a translation in metres."""
    matrix = np.eye(4)
    matrix[:3, :3] = quaternion_matrix(rotation)
    matrix[:3, 3] = translation
    return matrix


def yaw_quaternion(yaw: float) -> list[float]:
    """Return the quaternion (w, x, y, z) of a rotation by `yaw` radians about z."""
    return [float(np.cos(yaw / 2)), 0.0, 0.0, float(np.sin(yaw / 2))]


def ego2global(x: float, y: float, yaw: float) -> NDArray[np.float64]:
    """Return the (4, 4) ego-to-global transform of a vehicle on flat ground (metres, radians)."""
    return rigid((float(np.cos(yaw / 2)), 0.0, 0.0, float(np.sin(yaw / 2))), (x, y, 0.0))


def lidar2ego() -> NDArray[np.float64]:
    """Return the (4, 4) transform from the LiDAR to the ego frame."""
    return rigid(LIDAR_ROTATION, LIDAR_TRANSLATION)

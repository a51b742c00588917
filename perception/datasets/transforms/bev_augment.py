"""Random mirroring, turning and scaling of the world around the sensor.

The LiDAR frame of every frame in the queue changes by the same matrix `bev_aug` (new ← original): boxes and motion are
carried along, the images stay (`mirror_images` apart) and `lidar2img` gets the inverse on its right. Map targets follow
`bev_aug` (`LoadBEVMap` comes after these).
"""

import math
from typing import Any

import numpy as np

from perception.datasets.transforms._base import Transform
from perception.registry import TRANSFORMS
from perception.structures import CAMERA_NAMES
from perception.structures.ego_motion import CAN, QUATERNION, TRANSLATION, YAW, YAW_CHANGE_DEGREES

_SIDES = {"LEFT": "RIGHT", "RIGHT": "LEFT"}
_OPPOSITE = [
    CAMERA_NAMES.index("_".join(_SIDES.get(word, word) for word in name.split("_"))) for name in CAMERA_NAMES
]
"""For each camera the one that stands in its place in a mirror."""


def augment_boxes(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Boxes in the changed frame.

    Args:
        boxes: (n, 9), bottom-centre boxes with velocity (may be NaN), LiDAR frame.
        matrix: (4, 4), new ← old: a rotation about z, a mirroring in the plane, a uniform scale, or a product of them.

    Returns:
        (n, 9), yaw in (−π, π].
    """
    plane = matrix[:2, :2]
    scale = math.sqrt(abs(np.linalg.det(plane)))
    changed = boxes.copy()
    changed[:, :3] = boxes[:, :3] @ matrix[:3, :3].T + matrix[:3, 3]
    changed[:, 3:6] *= scale
    headings = np.stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6])], axis=-1) @ plane.T
    changed[:, 6] = np.arctan2(headings[:, 1], headings[:, 0])
    changed[:, 7:9] = boxes[:, 7:9] @ plane.T
    return changed


def augment_ego_motion(
    motion: np.ndarray, *, angle: float = 0.0, is_mirrored: bool = False, scale: float = 1.0
) -> np.ndarray:
    """Motion vector in the changed frame, such that `bev_shift` and the heading change fit the changed LiDAR frames.

    Mirroring comes first, then the rotation. A mirrored world is mirrored in the global frame too (y → −y), so that its
    poses stay rotations.

    Args:
        motion: (18,), as `perception.structures.ego_motion` makes it.
        angle: counter-clockwise rotation of the content, radians.
        is_mirrored: x → −x in the LiDAR frame (left ↔ right).
        scale: factor of all lengths.

    Returns:
        (18,).
    """
    changed = motion.copy()
    if is_mirrored:
        changed[TRANSLATION.start + 1] *= -1
        changed[QUATERNION] *= (1, -1, 1, -1)
        # Rows: acceleration, rotation rate, velocity; ego frame, x forward. A rotation is an axial vector.
        changed[CAN] *= (1, -1, 1, -1, 1, -1, 1, -1, 1)
        changed[YAW] *= -1
        changed[YAW_CHANGE_DEGREES] *= -1
    if angle:
        # The content turns by `angle`, so the frame turns by −angle beneath it.
        cos, sin = math.cos(angle), math.sin(angle)
        changed[CAN] = (changed[CAN].reshape(3, 3) @ [[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]]).ravel()
        half_cos, half_sin = math.cos(-angle / 2), math.sin(-angle / 2)
        w, x, y, z = changed[QUATERNION]
        changed[QUATERNION] = (
            w * half_cos - z * half_sin,
            x * half_cos + y * half_sin,
            y * half_cos - x * half_sin,
            z * half_cos + w * half_sin,
        )
        changed[YAW] = math.remainder(changed[YAW] - angle, 2 * math.pi)
    changed[TRANSLATION] *= scale
    changed[CAN.start : CAN.start + 3] *= scale
    changed[CAN.stop - 3 : CAN.stop] *= scale
    return changed


def _augment(
    results: dict[str, Any], *, angle: float = 0.0, is_mirrored: bool = False, scale: float = 1.0
) -> dict[str, Any]:
    if "gt_bev_seg" in results:
        raise ValueError(
            "LoadBEVMap must come after the BEV augmentations in the pipeline; move it behind them."
        )
    matrix = np.eye(4)
    cos, sin = math.cos(angle), math.sin(angle)
    matrix[:2, :2] = [[cos, -sin], [sin, cos]]
    matrix[:3, 0] *= -1 if is_mirrored else 1
    matrix[:3, :3] *= scale
    inverse = np.linalg.inv(matrix)
    frames = [
        {
            **frame,
            "lidar2img": frame["lidar2img"] @ inverse,
            "ego_motion": augment_ego_motion(
                frame["ego_motion"], angle=angle, is_mirrored=is_mirrored, scale=scale
            ),
        }
        for frame in results["frames"]
    ]
    return {
        **results,
        "frames": frames,
        "gt_bboxes_3d": augment_boxes(results["gt_bboxes_3d"], matrix),
        "bev_aug": matrix @ results["bev_aug"],
    }


def _sequence_rng(results: dict[str, Any]) -> np.random.Generator:
    """A carried BEV and the frame that reads it must lie in one world, so a stream's frames draw alike."""
    return results.get("sequence_rng", results["rng"])


@TRANSFORMS.register_module()
class BEVRandomFlip(Transform):
    """Swap left and right of the world (x → −x) with some probability.

    With the images as they are (BEVDet's way), what stands to the left in an image stands to the right in the BEV: the
    image no longer tells sides and headings. `mirror_images` mirrors them too and exchanges the left and the right
    cameras, so that a sample is one that a mirrored world would have given.

    Args:
        prob: the probability.
        mirror_images: mirror the images and exchange left and right cameras as well.

    Raises:
        ValueError: the probability is outside 0…1, or images are to be mirrored that are not loaded yet.
    """

    def __init__(self, *, prob: float = 0.5, mirror_images: bool = False) -> None:
        if not 0 <= prob <= 1:
            raise ValueError(f"prob must lie in 0…1, got {prob}.")
        self._prob = prob
        self._mirror_images = mirror_images

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Flip, or not."""
        if _sequence_rng(results).random() >= self._prob:
            return results
        flipped = _augment(results, is_mirrored=True)
        if self._mirror_images:
            flipped["frames"] = [_mirror_cameras(frame) for frame in flipped["frames"]]
        return flipped


def _mirror_cameras(frame: dict[str, Any]) -> dict[str, Any]:
    if "img" not in frame:
        raise ValueError("mirror_images needs the images; put BEVRandomFlip behind LoadMultiViewImages.")
    images = [frame["img"][source] for source in _OPPOSITE]
    lidar2img = frame["lidar2img"][_OPPOSITE].copy()
    for camera, image in enumerate(images):
        mirror = np.diag([-1.0, 1.0, 1.0, 1.0])
        mirror[0, 2] = image.shape[1]  # u → width − u
        lidar2img[camera] = mirror @ lidar2img[camera]
    return {
        **frame,
        "img": [np.ascontiguousarray(image[:, ::-1]) for image in images],
        "lidar2img": lidar2img,
    }


@TRANSFORMS.register_module()
class BEVRandomRotate(Transform):
    """Turn the world about the sensor's vertical axis by a random angle, and scale it.

    Args:
        max_angle: largest turn either way, degrees.
        scale_range: (lowest, highest) factor; (1, 1) leaves lengths alone.

    Raises:
        ValueError: the angle is outside 0…180, or the range is not positive or upside down.
    """

    def __init__(self, *, max_angle: float = 22.5, scale_range: tuple[float, float] = (1.0, 1.0)) -> None:
        if not 0 <= max_angle <= 180:
            raise ValueError(f"max_angle must lie in 0…180 degrees, got {max_angle}.")
        if not 0 < scale_range[0] <= scale_range[1]:
            raise ValueError(f"scale_range must be (low, high) with 0 < low <= high, got {scale_range}.")
        self._max_angle = max_angle
        self._scale_range = scale_range

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Turn and scale."""
        rng = _sequence_rng(results)
        angle = math.radians(rng.uniform(-self._max_angle, self._max_angle))
        scale = float(rng.uniform(*self._scale_range))
        return _augment(results, angle=angle, scale=scale)

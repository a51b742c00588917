"""What a vehicle hands over at one time: images, where their cameras sit and look, and where the vehicle is."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from perception.runtime.geometry import checked_intrinsics, checked_pose, compose_lidar2img
from perception.utils import did_you_mean, get_logger

logger = get_logger("runtime")


@dataclass(frozen=True, kw_only=True)
class Camera:
    """An image and its camera.

    Attributes:
        image: (H, W, 3), uint8, RGB, as decoded; resizing and normalising it is the graph's work.
        intrinsics: (3, 3), pixels of this very image.
        camera2ego: (4, 4), where the camera sits (x right, y down, z forward) on the vehicle.
        ego2global: (4, 4), pose of the vehicle when the image was taken, as nuScenes has it; None takes the frame's.
    """

    image: np.ndarray
    intrinsics: np.ndarray
    camera2ego: np.ndarray
    ego2global: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One time of one vehicle.

    Attributes:
        cameras: name → camera; those that the model was trained with.
        lidar2ego: (4, 4), calibration of the LiDAR, whose frame the model thinks in; none need be mounted.
        ego2global: (4, 4), pose of the vehicle (x forward, y left, z up) in a frame that stays in place.
        timestamp: seconds.
        stream: which vehicle or recording this is; each has a history of its own.
        scene: a change of it starts the stream anew.
        can: (9,), acceleration (m/s²), rotation rate (rad/s) and velocity (m/s) in the ego frame, or None.
    """

    cameras: Mapping[str, Camera]
    lidar2ego: np.ndarray
    ego2global: np.ndarray
    timestamp: float
    stream: Hashable = "default"
    scene: Hashable = ""
    can: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class CheckedFrame:
    """A frame that has passed all checks.

    Attributes:
        images: (N, H, W, 3), uint8, RGB.
        lidar2img: (N, 4, 4), float64.
        lidar2ego: (4, 4), float64.
        ego2global: (4, 4), float64.
        timestamp: seconds.
        can: (9,), float64, or None.
    """

    images: np.ndarray
    lidar2img: np.ndarray
    lidar2ego: np.ndarray
    ego2global: np.ndarray
    timestamp: float
    can: np.ndarray | None


def check_frame(frame: Frame, camera_names: Sequence[str]) -> CheckedFrame:
    """Check a frame and build its projections.

    Args:
        frame: the frame.
        camera_names: the cameras that the graph takes, in its order.

    Raises:
        ValueError: a camera is missing or unknown, an image has another form, size or dtype than it should, a
            calibration, pose or time is not one.
    """
    _check_names(frame.cameras, camera_names)
    who = f"stream {frame.stream!r}: "
    lidar2ego = checked_pose(f"{who}lidar2ego", frame.lidar2ego)
    ego2global = checked_pose(f"{who}ego2global", frame.ego2global)
    if not isinstance(frame.timestamp, int | float | np.number) or not np.isfinite(frame.timestamp):
        raise ValueError(f"{who}timestamp must be a finite number of seconds, got {frame.timestamp!r}.")
    cameras = [(f"{who}{name}", frame.cameras[name]) for name in camera_names]
    images = [check_image(f"{name}: image", camera.image) for name, camera in cameras]
    sizes = {image.shape[:2] for image in images}
    if len(sizes) > 1:
        found = {
            name: f"{image.shape[1]}×{image.shape[0]}"
            for name, image in zip(camera_names, images, strict=True)
        }
        raise ValueError(f"{who}all images of a frame must have one size, got {found}.")
    matrices = [_lidar2img(name, camera, ego2global, lidar2ego) for name, camera in cameras]
    return CheckedFrame(
        images=np.stack(images),
        lidar2img=np.stack(matrices),
        lidar2ego=lidar2ego,
        ego2global=ego2global,
        timestamp=float(frame.timestamp),
        can=_checked_can(who, frame.can),
    )


def check_image(name: str, image: np.ndarray) -> np.ndarray:
    """An image, if it is one.

    Args:
        name: what it is, for the message.
        image: (H, W, 3), uint8.

    Raises:
        ValueError: another dtype or shape, or no pixel.
    """
    dtype = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
    if dtype != np.uint8:
        raise ValueError(
            f"{name} must be an array of uint8, 0…255 as decoded, got {dtype}; normalising is the graph's work."
        )
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        hint = " Channels come last." if image.ndim == 3 and image.shape[0] == 3 else ""
        raise ValueError(f"{name} must be (height, width, 3), RGB, got {image.shape}.{hint}")
    return image


def _check_names(cameras: Mapping[str, Camera], names: Sequence[str]) -> None:
    missing = [name for name in names if name not in cameras]
    unknown = [name for name in cameras if name not in names]
    if missing or unknown:
        hint = did_you_mean(unknown[0], names) if unknown else ""
        raise ValueError(
            f"a frame needs {len(names)} cameras, {', '.join(names)}; got {len(cameras)}"
            + (f", without {', '.join(missing)}" if missing else "")
            + (f", with the unknown {', '.join(map(str, unknown))}" if unknown else "")
            + f".{hint}"
        )


def _lidar2img(name: str, camera: Camera, ego2global: np.ndarray, lidar2ego: np.ndarray) -> np.ndarray:
    intrinsics = checked_intrinsics(f"{name}: intrinsics", camera.intrinsics)
    height, width = camera.image.shape[:2]
    if not (0 <= intrinsics[0, 2] <= width and 0 <= intrinsics[1, 2] <= height):
        logger.warning(
            "%s: the principal point (%.1f, %.1f) lies outside the image of %d×%d; were the intrinsics scaled with it?",
            name,
            intrinsics[0, 2],
            intrinsics[1, 2],
            width,
            height,
        )
    camera2ego = checked_pose(f"{name}: camera2ego", camera.camera2ego)
    own = ego2global if camera.ego2global is None else checked_pose(f"{name}: ego2global", camera.ego2global)
    return compose_lidar2img(intrinsics, camera2ego, own, ego2global @ lidar2ego)


def _checked_can(who: str, can: np.ndarray | None) -> np.ndarray | None:
    if can is None:
        return None
    values = np.asarray(can, dtype=np.float64)
    if values.shape != (9,) or not np.isfinite(values).all():
        raise ValueError(
            f"{who}can must be 9 finite numbers (acceleration, rotation rate, velocity), got {values.tolist()}; None "
            "where there is no CAN bus."
        )
    return values

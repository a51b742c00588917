"""Images of all frames and cameras: decoding and resizing, with the change of `lidar2img` that belongs to it."""

from typing import Any, Literal

import numpy as np

from perception.datasets._image_files import INTERPOLATIONS, decode_for, read_content, resize_image
from perception.datasets.transforms._base import BEVTransform
from perception.registry import TRANSFORMS
from perception.structures import CAMERA_NAMES, resize_matrix


@TRANSFORMS.register_module()
class LoadMultiViewImages(BEVTransform):
    """Decode the six images of every frame.

    Adds `img` (list of N arrays (H, W, 3) uint8 BGR, in the order of `CAMERA_NAMES`) to each frame.

    Args:
        target_size: (width, height) that a later `ResizeMultiView` makes. Where a JPEG is at least twice as large it is
            decoded at 1/2, 1/4 or 1/8, never below this size, and `lidar2img` is scaled with it. None decodes in full.

    Raises:
        DataError: an image is missing, damaged, or not of the size that its calibration belongs to.
    """

    def __init__(self, *, target_size: tuple[int, int] | None = None) -> None:
        self._target_size = None if target_size is None else _checked_size(target_size)

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Decode; a frame that occurs twice is read once."""
        loaded: dict[str, dict[str, Any]] = {}
        for frame in results["frames"]:
            if frame["sample_token"] not in loaded:
                loaded[frame["sample_token"]] = self._load(frame)
        return {
            **results,
            "frames": [{**frame, **loaded[frame["sample_token"]]} for frame in results["frames"]],
        }

    def _load(self, frame: dict[str, Any]) -> dict[str, Any]:
        images, matrices = [], []
        token = frame["sample_token"]
        for camera, lidar2img in zip(CAMERA_NAMES, frame["lidar2img"], strict=True):
            path, size = frame["img_paths"][camera], frame["img_sizes"][camera]
            content = read_content(path, sample_token=token)
            image = decode_for(content, self._target_size, path=path, expected_size=size, sample_token=token)
            images.append(image.pixels)
            matrices.append(image.scale(lidar2img))
        return {"img": images, "lidar2img": np.stack(matrices)}


@TRANSFORMS.register_module()
class ResizeMultiView(BEVTransform):
    """Resize all images and scale `lidar2img` with them.

    Args:
        size: (width, height) of the result; the aspect ratio may change, each axis has its own factor.
        scale: factor instead of a size; the result is rounded to whole pixels.
        interpolation: "bilinear", as upstream, or "area", which does not alias below one half.

    Raises:
        ValueError: not exactly one of `size` and `scale`, or one that is not positive.
    """

    def __init__(
        self,
        *,
        size: tuple[int, int] | None = None,
        scale: float | None = None,
        interpolation: Literal["bilinear", "area"] = "bilinear",
    ) -> None:
        if (size is None) == (scale is None):
            raise ValueError(f"give either size=(width, height) or scale, got size={size} and scale={scale}.")
        if scale is not None and scale <= 0:
            raise ValueError(f"scale must be positive, got {scale}.")
        if interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation must be one of {tuple(INTERPOLATIONS)}, got {interpolation!r}.")
        self._size = None if size is None else _checked_size(size)
        self._scale = scale
        self._interpolation = interpolation

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Resize."""
        return {**results, "frames": [self._resize_frame(frame) for frame in results["frames"]]}

    def _resize_frame(self, frame: dict[str, Any]) -> dict[str, Any]:
        images, matrices = [], []
        for image, lidar2img in zip(frame["img"], frame["lidar2img"], strict=True):
            height, width = image.shape[:2]
            new_width, new_height = self._size or (round(width * self._scale), round(height * self._scale))
            images.append(resize_image(image, (new_width, new_height), self._interpolation))
            matrices.append(resize_matrix(new_width / width, new_height / height) @ lidar2img)
        return {**frame, "img": images, "lidar2img": np.stack(matrices)}


def _checked_size(size: tuple[int, int]) -> tuple[int, int]:
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"an image size is (width, height) with positive numbers, got {size}.")
    return (int(size[0]), int(size[1]))

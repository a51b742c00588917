"""Images of all frames and cameras: decoding and resizing, with the change of `lidar2img` that belongs to it."""

from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from perception.datasets.transforms._base import BEVTransform
from perception.registry import TRANSFORMS
from perception.structures import CAMERA_NAMES, resize_matrix
from perception.utils import DataError

_REDUCED_MODES = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
_INTERPOLATIONS = {"bilinear": cv2.INTER_LINEAR, "area": cv2.INTER_AREA}
_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_JPEG_TAIL = 1024


def read_image(path: str | Path, *, reduction: int = 1, sample_token: str | None = None) -> np.ndarray:
    """Decode an image file.

    Args:
        path: JPEG or PNG file. Orientation tags are ignored: calibrations refer to the stored pixels.
        reduction: 1, 2, 4 or 8; a JPEG is decoded directly at this fraction of its size, which is much faster.
        sample_token: for error messages.

    Returns:
        (H, W, 3) uint8, BGR.

    Raises:
        DataError: the file is missing, cut short or not an image.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise DataError(
            "the image is missing; unpack the archive that holds it, or fix data_root.",
            sample_token=sample_token,
            path=path,
        ) from error
    except OSError as error:
        raise DataError(
            f"the image cannot be read ({error}).", sample_token=sample_token, path=path
        ) from error
    # libjpeg fills what is missing of a cut file with grey and only prints a warning, so look for the end marker.
    is_cut = content.startswith(_JPEG_START) and content.rfind(_JPEG_END, -_JPEG_TAIL) < 0
    image = None
    if content and not is_cut:
        mode = _REDUCED_MODES[reduction] | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(np.frombuffer(content, np.uint8), mode)
    if image is None:
        reason = "it is cut short" if is_cut else "it is not a JPEG or PNG"
        raise DataError(
            f"the image of {len(content)} bytes cannot be decoded: {reason}; unpack it again, or train with "
            "on_error='skip'.",
            sample_token=sample_token,
            path=path,
        )
    return image


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
        for idx, camera in enumerate(CAMERA_NAMES):
            path, token = frame["img_paths"][camera], frame["sample_token"]
            size = frame["img_sizes"][camera]
            if size is None and self._target_size is not None:
                full = read_image(path, sample_token=token)
                size = (full.shape[1], full.shape[0])
            reduction = 1 if size is None else self._reduction(size)
            image = read_image(path, reduction=reduction, sample_token=token)
            height, width = image.shape[:2]
            if size is None:
                size = (width, height)
            # Decoders round a reduced size up.
            if (width, height) != (-(-size[0] // reduction), -(-size[1] // reduction)):
                raise DataError(
                    f"the image decodes to {width}×{height} at 1/{reduction}, but the index says {size[0]}×{size[1]}; "
                    "its calibration would be wrong. Restore the original file, or build the index again.",
                    sample_token=token,
                    path=path,
                )
            images.append(image)
            matrices.append(resize_matrix(1 / reduction, 1 / reduction) @ frame["lidar2img"][idx])
        return {"img": images, "lidar2img": np.stack(matrices)}

    def _reduction(self, size: tuple[int, int]) -> int:
        if self._target_size is None:
            return 1
        factor = min(size[0] / self._target_size[0], size[1] / self._target_size[1])
        return max(reduction for reduction in _REDUCED_MODES if reduction <= max(factor, 1))


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
        if interpolation not in _INTERPOLATIONS:
            raise ValueError(f"interpolation must be one of {tuple(_INTERPOLATIONS)}, got {interpolation!r}.")
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
            if (new_width, new_height) != (width, height):
                image = cv2.resize(
                    image, (new_width, new_height), interpolation=_INTERPOLATIONS[self._interpolation]
                )
            images.append(image)
            matrices.append(resize_matrix(new_width / width, new_height / height) @ lidar2img)
        return {**frame, "img": images, "lidar2img": np.stack(matrices)}


def _checked_size(size: tuple[int, int]) -> tuple[int, int]:
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"an image size is (width, height) with positive numbers, got {size}.")
    return (int(size[0]), int(size[1]))

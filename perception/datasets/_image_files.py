"""Image files: decoding at full or reduced size, and resizing, the same for the pipeline and for the image cache."""

import io
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from perception.structures import resize_matrix
from perception.utils import DataError

Size = tuple[int, int]
"""Width and height."""

INTERPOLATIONS = {"bilinear": cv2.INTER_LINEAR, "area": cv2.INTER_AREA}
_REDUCED_MODES = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_JPEG_TAIL = 1024


@dataclass(frozen=True)
class DecodedImage:
    """An image as it was decoded.

    Attributes:
        pixels: (H, W, 3) uint8, BGR.
        source_size: width and height of the file's image.
        reduction: the file was decoded at 1/reduction, and resized where the pixels have another size than that gives.
    """

    pixels: np.ndarray
    source_size: Size
    reduction: int

    def scale(self, lidar2img: np.ndarray) -> np.ndarray:
        """`lidar2img` (4, 4) of the file's pixels → of these."""
        height, width = self.pixels.shape[:2]
        decoded_width, decoded_height = reduced_size(self.source_size, self.reduction)
        # In two steps, as `LoadMultiViewImages` and `ResizeMultiView` do it: equal to the last bit.
        decoded = resize_matrix(1 / self.reduction, 1 / self.reduction) @ lidar2img
        return resize_matrix(width / decoded_width, height / decoded_height) @ decoded


def read_image(path: str | Path, *, reduction: int = 1, sample_token: str | None = None) -> np.ndarray:
    """Decode an image file.

    Args:
        path: JPEG or PNG file. Orientation tags are ignored: calibrations refer to the stored pixels.
        reduction: 1, 2, 4 or 8; a JPEG is decoded directly at this fraction of its size, which is faster.
        sample_token: for error messages.

    Returns:
        (H, W, 3) uint8, BGR.

    Raises:
        DataError: the file is missing, cut short or not an image.
    """
    content = read_content(path, sample_token=sample_token)
    return _decode(content, reduction=reduction, path=path, sample_token=sample_token)


def read_image_size(path: str | Path, *, sample_token: str | None = None) -> Size:
    """Width and height of an image file; only its header is read.

    Raises:
        DataError: the file is missing or not an image.
    """
    try:
        with Image.open(path) as image:
            return image.size
    except FileNotFoundError as error:
        raise _missing(path, sample_token) from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise DataError(
            f"the image's header cannot be read ({type(error).__name__}: it is not a JPEG or PNG); unpack it again.",
            sample_token=sample_token,
            path=path,
        ) from error


def decode_for(
    content: bytes,
    target_size: Size | None,
    *,
    path: str | Path,
    expected_size: Size | None = None,
    sample_token: str | None = None,
) -> DecodedImage:
    """Decode a JPEG at 1/1, 1/2, 1/4 or 1/8 of its size, the smallest not below a size wanted; others in full.

    Args:
        content: of a JPEG or PNG file.
        target_size: the size wanted; None decodes in full.
        path: the file, for error messages.
        expected_size: the size that calibration and labels belong to; None believes the file.
        sample_token: for error messages.

    Raises:
        DataError: the content is cut short, not an image, or not of the size expected.
    """
    size, reduction = expected_size, 1
    # Only libjpeg decodes at less than full cost, and other decoders round reduced sizes in other ways.
    if target_size is not None and content.startswith(_JPEG_START):
        size = size or _stored_size(content, path=path, sample_token=sample_token)
        reduction = reduction_for(size, target_size)
    pixels = _decode(content, reduction=reduction, path=path, sample_token=sample_token)
    height, width = pixels.shape[:2]
    if size is None:
        size = (width, height)
    if (width, height) != reduced_size(size, reduction):
        raise DataError(
            f"the image decodes to {width}×{height} at 1/{reduction}, but the index says {size[0]}×{size[1]}; its "
            "calibration and its labels would be wrong. Restore the original file, or build the index again.",
            sample_token=sample_token,
            path=path,
        )
    return DecodedImage(pixels=pixels, source_size=size, reduction=reduction)


def reduction_for(size: Size, target_size: Size) -> int:
    """The largest reduction that keeps an image at least as large as a size.

    Example:
        >>> reduction_for((1600, 900), (512, 288)), reduction_for((1600, 900), (1280, 720))
        (2, 1)
    """
    factor = min(size[0] / target_size[0], size[1] / target_size[1])
    return max(reduction for reduction in _REDUCED_MODES if reduction <= max(factor, 1))


def reduced_size(size: Size, reduction: int) -> Size:
    """Size of a JPEG decoded at 1/reduction; libjpeg rounds up."""
    return (-(-size[0] // reduction), -(-size[1] // reduction))


def resize_image(pixels: np.ndarray, size: Size, interpolation: str) -> np.ndarray:
    """(H, W, 3) → (height, width, 3); the array itself where it has that size."""
    height, width = pixels.shape[:2]
    if (width, height) == tuple(size):
        return pixels
    return cv2.resize(pixels, size, interpolation=INTERPOLATIONS[interpolation])


def read_content(path: str | Path, *, sample_token: str | None = None, what: str = "image") -> bytes:
    """The bytes of an image file, or of what else a message shall call it.

    Raises:
        DataError: the file is missing or cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise _missing(path, sample_token, what) from error
    except OSError as error:
        raise DataError(
            f"the {what} cannot be read ({error}).", sample_token=sample_token, path=path
        ) from error


def _missing(path: str | Path, sample_token: str | None, what: str = "image") -> DataError:
    return DataError(
        f"the {what} is missing; unpack the archive that holds it, or fix data_root.",
        sample_token=sample_token,
        path=path,
    )


def _decode(content: bytes, *, reduction: int, path: str | Path, sample_token: str | None) -> np.ndarray:
    # libjpeg fills what is missing of a cut file with grey and only prints a warning, so look for the end marker.
    is_cut = content.startswith(_JPEG_START) and content.rfind(_JPEG_END, -_JPEG_TAIL) < 0
    image = None
    if content and not is_cut:
        mode = _REDUCED_MODES[reduction] | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(np.frombuffer(content, np.uint8), mode)
    if image is None:
        raise _undecodable(
            content, "it is cut short" if is_cut else "it is not a JPEG or PNG", path, sample_token
        )
    return image


def _stored_size(content: bytes, *, path: str | Path, sample_token: str | None) -> Size:
    """Width and height from the header, without decoding."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.size
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise _undecodable(content, "it is not a JPEG or PNG", path, sample_token) from error


def _undecodable(content: bytes, reason: str, path: str | Path, sample_token: str | None) -> DataError:
    return DataError(
        f"the image of {len(content)} bytes cannot be decoded: {reason}; unpack it again, or train with "
        "on_error='skip'.",
        sample_token=sample_token,
        path=path,
    )

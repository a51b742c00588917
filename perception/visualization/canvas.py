"""Text, lines and files for pictures. Images are (H, W, 3), uint8, BGR."""

from functools import lru_cache
from pathlib import Path
from typing import Literal

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from perception.utils import write_bytes_atomic
from perception.visualization.palette import TEXT, Colour

SUBPIXEL_BITS = 4
"""Fraction bits of `to_fixed`, OpenCV's `shift`."""


def blank(height: int, width: int, colour: Colour) -> np.ndarray:
    """A one-coloured image."""
    return np.full((height, width, 3), colour, dtype=np.uint8)


def check_image(image: np.ndarray, name: str = "image") -> None:
    """Refuse anything but (H, W, 3) uint8.

    Raises:
        ValueError: the shape or the type is wrong.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"{name} must be (H, W, 3) uint8 BGR, got shape {image.shape} of {image.dtype}.")


def draw_text(
    image: np.ndarray,
    text: str,
    position: tuple[float, float],
    *,
    size: int = 14,
    colour: Colour = TEXT,
    bold: bool = False,
    anchor: Literal["la", "lm", "ma", "mm", "ra", "rm"] = "la",
) -> None:
    """Write text into an image, in place, in any script that DejaVu Sans holds.

    Args:
        image: changed.
        text: one line.
        position: (x, y) of the anchor, pixels.
        size: of the type, pixels.
        colour: BGR.
        bold: bold face.
        anchor: horizontal (left, middle, right) and vertical (ascender, middle) position of `position` in the
            text.
    """
    picture = Image.fromarray(image[..., ::-1])
    ImageDraw.Draw(picture).text(position, text, fill=colour[::-1], font=_font(size, bold), anchor=anchor)
    image[...] = np.asarray(picture)[..., ::-1]


def text_width(text: str, size: int = 14, bold: bool = False) -> float:
    """Width of a line of text, pixels."""
    return float(_font(size, bold).getlength(text))


def draw_segments(
    image: np.ndarray, segments: np.ndarray, colour: Colour, thickness: int = 1, dash: float = 0.0
) -> None:
    """Draw straight lines with smooth edges, in place; parts outside the image are cut off first.

    Args:
        image: changed.
        segments: (n, 2, 2), (x, y) pixels, any finite values; the corner of the image is (0, 0).
        colour: BGR.
        thickness: pixels.
        dash: length of dashes and gaps, pixels; 0 for a solid line.
    """
    height, width = image.shape[:2]
    margin = 4.0 * thickness + 4.0
    low, high = np.array([-margin, -margin]), np.array([width + margin, height + margin])
    for segment in np.asarray(segments, dtype=np.float64).reshape(-1, 2, 2):
        clipped = clip_segment(segment, low, high)
        if clipped is None:
            continue
        for start, end in _dashes(clipped, dash):
            first, second = (to_fixed(point).tolist() for point in (start, end))
            cv2.line(image, first, second, colour, thickness, cv2.LINE_AA, SUBPIXEL_BITS)


def to_fixed(points: np.ndarray) -> np.ndarray:
    """Pixels (corner of the image at 0) → OpenCV's fixed-point numbers (centre of the first pixel at 0).

    Example:
        >>> to_fixed(np.array([0.5, 2.0])).tolist()
        [0, 24]
    """
    return np.round((points - 0.5) * (1 << SUBPIXEL_BITS)).astype(np.int32)


def clip_segment(segment: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray | None:
    """The part of a segment inside a rectangle (Liang and Barsky), or None.

    Args:
        segment: (2, 2), (x, y).
        low: (2,), smallest x and y.
        high: (2,), largest x and y.

    Example:
        >>> clip_segment(np.array([[-1e9, 5.0], [1e9, 5.0]]), np.zeros(2), np.array([8.0, 8.0])).tolist()
        [[0.0, 5.0], [8.0, 5.0]]
    """
    start, direction = segment[0], segment[1] - segment[0]
    first, last = 0.0, 1.0
    for axis in range(2):
        if direction[axis] == 0:
            if not low[axis] <= start[axis] <= high[axis]:
                return None
            continue
        bounds = sorted((edge - start[axis]) / direction[axis] for edge in (low[axis], high[axis]))
        first, last = max(first, bounds[0]), min(last, bounds[1])
    return None if first > last else np.stack([start + first * direction, start + last * direction])


def fit(image: np.ndarray, height: int, width: int, colour: Colour) -> np.ndarray:
    """The image scaled to fit into height × width, centred on a background."""
    scale = min(height / image.shape[0], width / image.shape[1])
    inner = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    scaled = cv2.resize(image, inner, interpolation=method)
    canvas = blank(height, width, colour)
    top, left = (height - inner[1]) // 2, (width - inner[0]) // 2
    canvas[top : top + inner[1], left : left + inner[0]] = scaled
    return canvas


def save_image(path: str | Path, image: np.ndarray) -> Path:
    """Write an image as .png or .jpg, by the suffix; paths with spaces and non-ASCII letters are fine.

    Raises:
        ValueError: the suffix is unknown.
        OSError: the folder is not writable or the disk is full.
    """
    path = Path(path)
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ValueError(f"Cannot write {path.name!r}: pictures are written as .png or .jpg.")
    path.parent.mkdir(parents=True, exist_ok=True)
    _, encoded = cv2.imencode(path.suffix, image)
    write_bytes_atomic(path, encoded.tobytes())
    return path


def _dashes(segment: np.ndarray, dash: float) -> list[tuple[np.ndarray, np.ndarray]]:
    length = float(np.linalg.norm(segment[1] - segment[0]))
    if dash <= 0 or length <= dash:
        return [(segment[0], segment[1])]
    starts = np.arange(0, length, 2 * dash)
    direction = (segment[1] - segment[0]) / length
    return [(segment[0] + s * direction, segment[0] + min(s + dash, length) * direction) for s in starts]


@lru_cache(maxsize=32)
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)

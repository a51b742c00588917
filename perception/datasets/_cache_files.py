"""How an image cache looks on disk: the settings and manifest of a size's folder, and a copy with its record."""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from perception.datasets._image_files import INTERPOLATIONS, Size
from perception.utils import DataError, read_json

FORMAT_VERSION = 1
"""Raise it when the way of making a copy changes, so that old caches are refused."""

MANIFEST = "cache.json"
_SUFFIXES = {"jpeg": ".jpg", "bmp": ".bmp"}
_RECORD_START = b"\n{"


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """How the copies of one cache are made.

    Args:
        size: width and height of the copies.
        interpolation: as in `ResizeMultiView`.
        image_format: "jpeg" (4:4:4), or "bmp", which loses nothing.
        quality: of JPEGs, 1 to 100.

    Raises:
        ValueError: a value is out of range.

    Example:
        >>> CacheSettings(size=(512, 288)).name
        '512x288'
    """

    size: Size
    interpolation: str = "bilinear"
    image_format: Literal["jpeg", "bmp"] = "jpeg"
    quality: int = 95

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            raise ValueError(
                f"the size of a cache is (width, height) with positive numbers, got {self.size}."
            )
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"interpolation must be one of {tuple(INTERPOLATIONS)}, got {self.interpolation!r}."
            )
        if self.image_format not in _SUFFIXES:
            raise ValueError(f"image_format must be one of {tuple(_SUFFIXES)}, got {self.image_format!r}.")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality must be 1 to 100, got {self.quality}.")

    @property
    def name(self) -> str:
        """Name of the cache's folder."""
        return f"{self.size[0]}x{self.size[1]}"

    def path(self, folder: Path, name: str) -> Path:
        """The copy of an image, by the image's path in its root."""
        return (folder / name).with_suffix(_SUFFIXES[self.image_format])

    def encode(self, pixels: np.ndarray) -> bytes:
        """An image file's content of (H, W, 3) uint8 BGR."""
        options = []
        if self.image_format == "jpeg":
            options = [cv2.IMWRITE_JPEG_QUALITY, self.quality]
            options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
        is_encoded, content = cv2.imencode(_SUFFIXES[self.image_format], pixels, options)
        if not is_encoded:
            raise RuntimeError(f"OpenCV could not encode an image of shape {pixels.shape}.")
        return content.tobytes()

    def to_json(self) -> dict[str, Any]:
        """The part of the manifest that two caches must share to be the same."""
        return {
            "format_version": FORMAT_VERSION,
            "size": list(self.size),
            "interpolation": self.interpolation,
            "format": self.image_format,
            "quality": self.quality if self.image_format == "jpeg" else None,
        }


@dataclass(frozen=True, kw_only=True)
class SourceRecord:
    """What a copy says of its original.

    Attributes:
        num_bytes: size of the original's file.
        mtime_ns: when that file was last changed.
        size: width and height of the original.
        reduction: it was decoded at 1/reduction, then resized.
    """

    num_bytes: int
    mtime_ns: int
    size: Size
    reduction: int


def join_copy(image: bytes, record: SourceRecord) -> bytes:
    """The content of a copy's file: an encoded image and its record."""
    fields = {
        "source_bytes": record.num_bytes,
        "source_mtime_ns": record.mtime_ns,
        "source_size": list(record.size),
        "reduction": record.reduction,
        "crc32": zlib.crc32(image),
    }
    return image + b"\n" + json.dumps(fields).encode() + b"\n"


def split_copy(content: bytes) -> tuple[bytes, SourceRecord] | None:
    """The encoded image and its record; None where the file is damaged."""
    image, _, text = content.rpartition(_RECORD_START)
    try:
        fields = json.loads(b"{" + text)
        if zlib.crc32(image) != fields["crc32"]:
            return None
        width, height = fields["source_size"]
        return image, SourceRecord(
            num_bytes=fields["source_bytes"],
            mtime_ns=fields["source_mtime_ns"],
            size=(width, height),
            reduction=fields["reduction"],
        )
    except (ValueError, KeyError, TypeError):
        return None


def read_manifest(folder: Path) -> tuple[CacheSettings, int | None] | None:
    """How one size's copies were made, and how many there are; None where there is no manifest.

    The number is None until the first run that made them has come to its end.

    Raises:
        DataError: the manifest cannot be read, or another version of this program wrote it.
    """
    path = folder / MANIFEST
    remedy = (
        "remove the folder and make the cache again by `perception data prepare ROOT --cache WIDTHxHEIGHT`."
    )
    try:
        fields = read_json(path)
        version = fields["format_version"]
        if version != FORMAT_VERSION:
            raise DataError(
                f"the image cache is of version {version}, this program has version {FORMAT_VERSION}; {remedy}",
                path=path,
            )
        width, height = fields["size"]
        settings = CacheSettings(
            size=(width, height),
            interpolation=fields["interpolation"],
            image_format=fields["format"],
            quality=CacheSettings.quality if fields["quality"] is None else fields["quality"],
        )
        return settings, fields["num_images"]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except DataError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"not the manifest of an image cache ({error}); {remedy}", path=path) from error

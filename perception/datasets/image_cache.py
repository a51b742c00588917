"""Resized copies of camera images on disk: how a copy and its folder look, and reading them.

`<cache_dir>/512x288/` holds `cache.json`, the manifest, and the copies under the names that the originals have in their
root. The last line of each copy, behind the image, is a JSON record of its original; `tail -n 1` shows it.
"""

import json
import os
import shlex
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from perception.datasets._image_files import INTERPOLATIONS, DecodedImage, Size
from perception.utils import DataError, read_json

FORMAT_VERSION = 1
"""Raise it when the way of making a copy changes, so that old caches are refused."""

CACHE_FOLDER = "image_cache"
MANIFEST = "cache.json"
_SUFFIXES = {"jpeg": ".jpg", "bmp": ".bmp"}
_RECORD_START = b"\n{"
_AUTO = "auto"


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


def cache_folder(cache_dir: str | Path, data_root: str | Path) -> Path:
    """The folder of all sizes that a `cache_dir` stands for."""
    return Path(data_root) / "perception_index" / CACHE_FOLDER if cache_dir == _AUTO else Path(cache_dir)


def cache_command(cache_dir: str | Path, data_root: str | Path, size: Size) -> str:
    """The command that makes a cache, for error messages.

    Example:
        >>> cache_command("auto", "data/nuscenes", (512, 288))
        'perception data prepare data/nuscenes --cache 512x288'
    """
    words = ["perception", "data", "prepare", str(data_root)]
    folder = cache_folder(cache_dir, data_root)
    if cache_dir != _AUTO and folder.name == CACHE_FOLDER:
        words += ["--out", str(folder.parent)]
    elif cache_dir != _AUTO:
        words += ["--cache-dir", str(folder)]
    return shlex.join([*words, "--cache", f"{size[0]}x{size[1]}"])


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


class ImageCache:
    """The copies of one size, to read.

    Args:
        cache_dir: folder of all sizes; "auto" is `<data_root>/perception_index/image_cache`.
        data_root: the root whose images were copied.
        size: width and height of the copies.

    Raises:
        DataError: there is no such cache, or it is unfinished, or of another size or version.
    """

    def __init__(self, *, cache_dir: str | Path, data_root: str | Path, size: Size) -> None:
        self._root = Path(data_root)
        self._command = cache_command(cache_dir, data_root, size)
        parent = cache_folder(cache_dir, data_root)
        self.folder = parent / f"{size[0]}x{size[1]}"
        manifest = read_manifest(self.folder)
        if manifest is None:
            raise DataError(
                f"there is no image cache of {size[0]}×{size[1]}{self._others(parent)}; make it by `{self._command}`, "
                "or read the originals with cache_dir=null.",
                path=self.folder,
            )
        self.settings, num_images = manifest
        if self.settings.size != tuple(size):
            raise DataError(
                f"the image cache holds {self.settings.name}, not what its folder is called; do not rename such "
                f"folders, make this size by `{self._command}`.",
                path=self.folder / MANIFEST,
            )
        if num_images is None:
            raise DataError(
                f"the image cache is unfinished; `{self._command}` makes the rest.", path=self.folder
            )

    @staticmethod
    def _others(parent: Path) -> str:
        if (parent / MANIFEST).is_file():
            return f" below it (cache_dir is the folder above: {parent.parent})"
        found = sorted(path.parent.name for path in parent.glob(f"*/{MANIFEST}"))
        return f" (there is {', '.join(found)})" if found else ""

    def path(self, name: str) -> Path:
        """The copy of an image, by the image's path in its root."""
        return self.settings.path(self.folder, name)

    def name_of(self, source: str | Path) -> str:
        """An image's path in the root.

        Raises:
            DataError: it lies elsewhere.
        """
        name = os.path.relpath(source, self._root)
        if name.split(os.sep, 1)[0] == os.pardir:
            raise DataError(
                f"the image is not below the data root {self._root}, so no cache holds it; set cache_dir=null.",
                path=source,
            )
        return name

    def read(self, source: str | Path, *, sample_token: str | None = None) -> DecodedImage:
        """The copy of an image, decoded.

        Where the original is there too, it must still have the size in bytes that it had; it is not opened.

        Args:
            source: the original's path.
            sample_token: for error messages.

        Raises:
            DataError: the copy is missing, damaged, or of another image than the original is now.
        """
        path = self.path(self.name_of(source))

        def defect(what: str) -> DataError:
            return DataError(
                f"the cached image {what}; `{self._command}` makes it again.",
                sample_token=sample_token,
                path=path,
            )

        try:
            found = split_copy(path.read_bytes())
        except OSError as error:
            raise defect("is missing" if isinstance(error, FileNotFoundError) else str(error)) from error
        if found is None:
            raise defect("is damaged")
        content, record = found
        num_bytes = _num_bytes(source)
        if num_bytes not in (None, record.num_bytes):
            raise defect(
                f"is stale: it was made from a file of {record.num_bytes} bytes, and {source} has {num_bytes}"
            )
        pixels = cv2.imdecode(
            np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        )
        if pixels is None or pixels.shape[1::-1] != self.settings.size:
            raise defect("is damaged")
        return DecodedImage(pixels=pixels, source_size=record.size, reduction=record.reduction)


def _num_bytes(path: str | Path) -> int | None:
    try:
        return os.stat(path).st_size
    except (FileNotFoundError, NotADirectoryError):
        return None

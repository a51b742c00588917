"""Resized copies of camera images on disk: where they are, and reading them.

`<cache_dir>/512x288/` holds `cache.json`, the manifest, and the copies under the names that the originals have in their
root. The last line of each copy, behind the image, is a JSON record of its original; `tail -n 1` shows it.
"""

import os
import shlex
from pathlib import Path

import cv2
import numpy as np

from perception.datasets._cache_files import MANIFEST, read_manifest, split_copy
from perception.datasets._image_files import DecodedImage, Size
from perception.utils import DataError

CACHE_FOLDER = "image_cache"
_AUTO = "auto"


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

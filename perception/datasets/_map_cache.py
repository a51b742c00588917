"""Map targets on disk: PNG files, each with a checksum behind its end marker, where image viewers ignore it."""

import hashlib
import os
import uuid
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from perception.structures import MapGrid
from perception.utils import DataError, get_logger, sha256_file

FORMAT_VERSION = 1
"""Raise it when the drawing rule changes, so that old files are no longer found."""

_DIGEST_SIZE = hashlib.sha256().digest_size


class MapCache:
    """Targets of one map file, one grid and one drawing rule. A damaged file is drawn again, with a warning.

    Args:
        folder: where the files go, in a sub-folder named by everything that they depend on; None keeps nothing.
        grid: the pixels.
        filled: the drawing rule.
        map_file: the vector map; its content is part of the key.

    Raises:
        DataError: the map file is missing.
    """

    def __init__(self, *, folder: str | Path | None, grid: MapGrid, filled: bool, map_file: Path) -> None:
        self._shape = grid.shape
        self._folder: Path | None = None
        if folder is None:
            return
        if not map_file.is_file():
            raise DataError(
                f"the vector map of {map_file.stem!r} is missing; download 'nuScenes map expansion v1.3' from "
                "nuscenes.org and unpack it into maps/, or train without the seg task "
                "(LoadBEVMap(on_missing='skip')).",
                path=map_file,
            )
        key = repr((FORMAT_VERSION, grid, filled, sha256_file(map_file)))
        self._folder = Path(folder) / hashlib.sha256(key.encode()).hexdigest()[:16]

    def get(self, sample_token: str, pose: np.ndarray, draw: Callable[[], np.ndarray]) -> np.ndarray:
        """The target of a sample, from disk or drawn now.

        Args:
            sample_token: part of the file's name.
            pose: numbers that the target depends on; part of the file's name by their hash.
            draw: makes the target, (rows, columns) uint8.
        """
        if self._folder is None:
            return draw()
        pose_hash = hashlib.sha256(np.ascontiguousarray(pose, dtype=np.float64).tobytes()).hexdigest()[:12]
        path = self._folder / f"{sample_token}_{pose_hash}.png"
        cached = self._read(path)
        if cached is not None:
            return cached
        target = draw()
        self._write(path, target)
        return target

    def _read(self, path: Path) -> np.ndarray | None:
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        image, digest = content[:-_DIGEST_SIZE], content[-_DIGEST_SIZE:]
        if hashlib.sha256(image).digest() == digest:
            target = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_GRAYSCALE)
            if target is not None and target.shape == self._shape:
                return target
        get_logger(__name__).warning("cached map target %s is damaged and is drawn again", path)
        return None

    def _write(self, path: Path, target: np.ndarray) -> None:
        if self._folder is None:
            return
        is_encoded, encoded = cv2.imencode(".png", target)
        if not is_encoded:
            raise RuntimeError(f"OpenCV could not encode a map target of shape {target.shape}.")
        image = encoded.tobytes()
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(image + hashlib.sha256(image).digest())
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            get_logger(__name__).warning(
                "map targets cannot be cached in %s (%s); they are drawn each time. Set LoadBEVMap(cache_dir=…) to a "
                "writable folder, or to None",
                self._folder,
                error,
            )
            self._folder = None

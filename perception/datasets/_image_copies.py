"""Making copies of single images, as the pipeline would resize them."""

import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from perception.datasets._cache_files import CacheSettings, SourceRecord, join_copy, split_copy
from perception.datasets._image_files import Size, decode_for, read_content, resize_image
from perception.utils import DataError

Task = tuple[str, Size | None]
"""An image's path in its root, and its size if the index knows it."""


@dataclass
class Outcome:
    """What became of some images.

    Attributes:
        num_made: copies made, because they were not there or not right.
        source_sizes: width and height of the originals.
        errors: of originals that could not be read.
    """

    num_made: int = 0
    source_sizes: set[Size] = field(default_factory=set)
    errors: list[DataError] = field(default_factory=list)


def copy_of(root: Path, task: Task, settings: CacheSettings) -> tuple[bytes, SourceRecord]:
    """Content of a copy's file, made from the original as the pipeline resizes it, and the record in it.

    Args:
        root: the folder that the image's path is relative to.
        task: the image.
        settings: how the copy is made.

    Raises:
        DataError: the original is missing, damaged or not of the size that the index says.
    """
    name, expected_size = task
    source = root / name
    # Before reading it: an original that changes meanwhile is seen to be newer than its copy.
    state = _state(source)
    content = read_content(source)
    image = decode_for(content, settings.size, path=source, expected_size=expected_size)
    pixels = resize_image(image.pixels, settings.size, settings.interpolation)
    num_bytes, mtime_ns = (len(content), 0) if state is None else state
    record = SourceRecord(
        num_bytes=num_bytes, mtime_ns=mtime_ns, size=image.source_size, reduction=image.reduction
    )
    return join_copy(settings.encode(pixels), record), record


def make_copies(root: Path, folder: Path, settings: CacheSettings, tasks: Sequence[Task]) -> Outcome:
    """Make the copies of some images, where there is none that is whole and of its original.

    Args:
        root: the folder that the images' paths are relative to.
        folder: of this size.
        settings: how copies are made.
        tasks: the images.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    outcome = Outcome()
    for task in tasks:
        path = settings.path(folder, task[0])
        record = _fresh_record(path, root / task[0])
        if record is None:
            try:
                content, record = copy_of(root, task, settings)
            except DataError as error:
                path.unlink(missing_ok=True)
                outcome.errors.append(error)
                continue
            _write(path, content)
            outcome.num_made += 1
        outcome.source_sizes.add(record.size)
    return outcome


def _fresh_record(path: Path, source: Path) -> SourceRecord | None:
    """The record of a copy that is whole and of this original, as far as that is there to tell; else None."""
    try:
        found = split_copy(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    if found is None:
        return None
    record = found[1]
    return record if _state(source) in (None, (record.num_bytes, record.mtime_ns)) else None


def _state(source: Path) -> tuple[int, int] | None:
    try:
        status = source.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_size, status.st_mtime_ns


def _write(path: Path, content: bytes) -> None:
    # Without fsync, which takes longer than all the rest: what a power cut leaves of a copy has no valid record.
    temporary = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

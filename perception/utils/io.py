"""Files that are either the old ones or the new ones, never half of each."""

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def fsync_dir(path: str | Path) -> None:
    """Flush a folder's entries to disk, so that a rename in it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes_atomic(path: str | Path, content: bytes | Iterable[bytes]) -> None:
    """Write a file by way of a temporary one beside it, fsynced and renamed into place.

    Args:
        path: the file.
        content: its bytes, or pieces of them, each written as it is made; if making one fails, so does the whole.

    Raises:
        OSError: the disk is full or the folder is not writable; the old file, if any, is untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex}")
    try:
        with open(temporary, "wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)


def write_json_atomic(path: str | Path, content: Any, *, indent: int | None = 2) -> None:
    """Write JSON atomically. NaN and infinity are refused, since JSON has no such numbers.

    Raises:
        ValueError: `content` holds a NaN or an infinity.
        TypeError: `content` holds something that JSON cannot express.
        OSError: the disk is full or the folder is not writable.
    """
    text = json.dumps(content, indent=indent, allow_nan=False, ensure_ascii=False)
    write_bytes_atomic(path, (text + "\n").encode("utf-8"))


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        json.JSONDecodeError: the file is not JSON.
    """
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def iter_json_lines(path: str | Path) -> Iterator[dict[str, Any]]:
    r"""Objects of a file with one per line, one at a time; a last line cut short by a crash is left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another line is not a JSON object.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile("w+") as file:
        ...     _ = file.write('{"step": 1}\n{"step": 2')
        ...     file.flush()
        ...     list(iter_json_lines(file.name))
        [{'step': 1}]
    """
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                if not line.endswith("\n"):
                    return
                raise ValueError(
                    f"{path}, line {number} is not JSON ({error.msg}); the file is damaged."
                ) from error
            if not isinstance(record, dict):
                raise ValueError(f"{path}, line {number} is not a JSON object but {type(record).__name__}.")
            yield record


def sha256_file(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

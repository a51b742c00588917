"""The output folder: what may be replaced, who is writing, and the final rename."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from perception.utils import DataError, fsync_dir, get_logger, read_json, write_json_atomic

FORMAT = 2  # raised whenever the same parameters would give another world
MARKER = "synthetic.json"
_OWNER = "owner.pid"


def partial_path(out: Path) -> Path:
    """Folder beside `out` in which a world is made."""
    return out.with_name(f".{out.name}.partial")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _read_marker(out: Path) -> dict[str, Any] | None:
    path = out / MARKER
    if not path.is_file():
        return None
    try:
        content = read_json(path)
    except ValueError as error:
        raise DataError(
            f"not a readable marker of a synthetic world ({error}); remove the folder by hand", path=path
        ) from error
    if not isinstance(content, dict):
        raise DataError("not a marker of a synthetic world; remove the folder by hand", path=path)
    return content


def claim(out: Path, parameters: dict[str, Any], *, overwrite: bool, need: int) -> Path | None:
    """Check the output folder and make the folder to write in.

    Args:
        out: where the world shall be.
        parameters: what determines it.
        overwrite: whether a synthetic world with other parameters may be replaced.
        need: bytes that the world will take.

    Returns:
        The folder to write in, or None when `out` already holds exactly this world.

    Raises:
        DataError: `out` is something else or another world, another run is writing it, or the disk is too small.
    """
    if out.exists() and not out.is_dir():
        raise DataError("the output path exists and is not a folder; choose another --out", path=out)
    if out.is_dir() and any(out.iterdir()):
        found = _read_marker(out)
        if found is None:
            raise DataError(
                "the output folder is not empty and holds no synthetic world, so it is left alone; choose "
                "another --out",
                path=out,
            )
        if found == parameters:
            return None
        if not overwrite:
            differences = ", ".join(
                f"{k}: {found.get(k)!r} there, {v!r} asked for"
                for k, v in parameters.items()
                if found.get(k) != v
            )
            raise DataError(
                f"the output folder holds another synthetic world ({differences}); choose another --out, "
                "or overwrite it (overwrite=True)",
                path=out,
            )
    partial = partial_path(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _take(partial)
        free = shutil.disk_usage(partial).free
    except OSError as error:
        raise DataError(f"cannot make a folder to write in: {error}", path=partial) from error
    if free < need:
        release(partial)
        raise DataError(
            f"the disk has {free / 1e6:.0f} MB left, the world takes up to {need / 1e6:.0f} MB; free some "
            "space or write to another disk (--out)",
            path=out,
        )
    return partial


def _take(partial: Path) -> None:
    if partial.exists():
        owner = partial / _OWNER
        text = owner.read_text(encoding="utf-8").strip() if owner.is_file() else ""
        if text.isdigit() and int(text) != os.getpid() and _is_alive(int(text)):
            raise DataError(
                f"another run (process {text}) is writing this world; wait for it or stop it", path=partial
            )
        get_logger(__name__).warning(
            "an earlier run was interrupted; its unfinished files in %s are made anew", partial
        )
        shutil.rmtree(partial)
    partial.mkdir()
    (partial / _OWNER).write_text(f"{os.getpid()}\n", encoding="utf-8")


@contextmanager
def publishing(partial: Path, out: Path, parameters: dict[str, Any]) -> Iterator[None]:
    """Publish the world that the block writes into `partial`, or remove what is there of it if it fails.

    Raises:
        DataError: the world cannot be written; the disk may be full.
    """
    try:
        yield
        publish(partial, out, parameters)
    except OSError as error:
        release(partial)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(
                "the disk is full; free some space or write to another disk (--out)", path=out
            ) from error
        raise DataError(f"cannot write the world: {error}", path=out) from error
    except BaseException:
        release(partial)
        raise


def release(partial: Path) -> None:
    """Remove an unfinished world."""
    shutil.rmtree(partial, ignore_errors=True)


def publish(partial: Path, out: Path, parameters: dict[str, Any]) -> None:
    """Mark a finished world as complete and rename it into place; the old one goes only after that."""
    write_json_atomic(partial / MARKER, parameters)
    (partial / _OWNER).unlink()
    fsync_dir(partial)
    old = None
    if out.exists():
        old = out.with_name(f".{out.name}.old-{os.getpid()}")
        os.rename(out, old)
    os.rename(partial, out)
    fsync_dir(out.parent)
    if old is not None:
        shutil.rmtree(old)

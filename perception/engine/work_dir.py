"""The work directory: usable before anything is built, and used by one run at a time."""

import fcntl
import os
import uuid
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from perception.checkpoint.names import CHECKPOINTS_DIR

LOCK_FILE = ".lock"


class WorkDirError(RuntimeError):
    """The work directory cannot be used: it is not writable, not a folder, or another run has it.

    Args:
        message: what was found and the remedy.
        path: the work directory.
    """

    def __init__(self, message: str, *, path: str | Path) -> None:
        self.path = str(path)
        super().__init__(f"{message} [{path}]")


def prepare_work_dir(path: str | Path) -> Path:
    """Make the folder if needed and prove that a file can be written into it.

    Raises:
        WorkDirError: the path is a file, or the folder can't be made or written.
    """
    folder = Path(path).absolute()
    probe = folder / f".probe-{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(probe, "wb") as file:
            file.write(b"\0")
    except (FileExistsError, NotADirectoryError) as error:
        raise WorkDirError(
            f"work_dir is not a folder ({error}). Choose another work_dir", path=folder
        ) from error
    except OSError as error:
        raise WorkDirError(
            f"work_dir is not writable ({error.strerror or error}). Choose another work_dir or free it",
            path=folder,
        ) from error
    finally:
        with suppress(OSError):
            probe.unlink()
    return folder


def holds_run(path: str | Path) -> bool:
    """Whether a run has left a checkpoint in the work directory."""
    folder = Path(path) / CHECKPOINTS_DIR
    return folder.is_dir() and any(folder.glob("step_*"))


def check_free(path: str | Path) -> None:
    """Refuse a work directory that a new run would write over.

    Raises:
        WorkDirError: it holds a run.
    """
    if holds_run(path):
        raise WorkDirError(
            "work_dir holds a run already. Continue it with --resume, or choose another work_dir", path=path
        )


class WorkDirLock:
    """Exclusive use of a work directory, as a context manager.

    A POSIX record lock: the kernel drops it when the process dies, however it dies, and loader workers do not inherit
    it. So the lock file of a dead run is simply taken over.

    Args:
        folder: the work directory.

    Raises:
        WorkDirError: on entering, if another process holds it; the message has its pid.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._descriptor: int | None = None

    def __enter__(self) -> "WorkDirLock":
        descriptor = os.open(self.folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(descriptor, 32).decode("ascii", errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise WorkDirError(
                f"work_dir is in use by process {holder}. Wait for it, end it, or choose another work_dir",
                path=self.folder,
            ) from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode("ascii"))
        self._descriptor = descriptor
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None

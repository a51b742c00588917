"""The error of everything that reads or writes checkpoints."""

from pathlib import Path


class CheckpointError(RuntimeError):
    """A checkpoint is missing, damaged, unsafe or does not fit.

    Args:
        message: what was found, what was expected and the remedy.
        path: file or folder in question.

    Example:
        >>> str(CheckpointError("no manifest", path="runs/demo"))
        'no manifest [runs/demo]'
    """

    def __init__(self, message: str, *, path: str | Path) -> None:
        self.message = message
        self.path = str(path)
        super().__init__(f"{message} [{path}]")

    def __reduce__(self) -> tuple:
        return (_rebuild, (self.message, self.path))


def _rebuild(message: str, path: str) -> CheckpointError:
    return CheckpointError(message, path=path)

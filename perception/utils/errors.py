"""Errors that name what they are about: a sample, a file."""

from functools import partial
from pathlib import Path


class DataError(ValueError):
    """Data on disk is missing, damaged or contradicts itself.

    The message names the sample and the file, so that one line in a log is enough to find the cause.

    Args:
        message: what was found, what was expected and the remedy.
        sample_token: token of the sample in question, if there is one.
        path: file or folder in question, if there is one.

    Example:
        >>> str(DataError("the image cannot be decoded", sample_token="abc", path="x.jpg"))
        'the image cannot be decoded [sample abc] [x.jpg]'
    """

    def __init__(
        self, message: str, *, sample_token: str | None = None, path: str | Path | None = None
    ) -> None:
        self.message = message
        self.sample_token = sample_token
        self.path = None if path is None else str(path)
        parts = [message]
        if sample_token is not None:
            parts.append(f"[sample {sample_token}]")
        if path is not None:
            parts.append(f"[{path}]")
        super().__init__(" ".join(parts))

    def __reduce__(self) -> tuple:
        # Keyword-only arguments are lost by the default protocol, and loader workers send errors to their parent.
        return (partial(type(self), sample_token=self.sample_token, path=self.path), (self.message,))


class FileError(RuntimeError):
    """The base of errors about one file or folder.

    Args:
        message: what was found, what was expected and the remedy.
        path: file or folder in question.

    Example:
        >>> str(FileError("no manifest", path="runs/demo"))
        'no manifest [runs/demo]'
    """

    def __init__(self, message: str, *, path: str | Path) -> None:
        self.message = message
        self.path = str(path)
        super().__init__(f"{message} [{path}]")

    def __reduce__(self) -> tuple:
        return (partial(type(self), path=self.path), (self.message,))

"""The error of everything that reads or writes checkpoints."""

from perception.utils import FileError


class CheckpointError(FileError):
    """A checkpoint is missing, damaged, unsafe or does not fit."""

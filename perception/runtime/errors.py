"""The error of everything that reads or checks an exported model."""

from perception.utils import FileError


class ModelError(FileError):
    """An export folder is missing, damaged, of another version, or does not do what its proof says."""

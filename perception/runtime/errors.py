"""The error of everything that reads or checks an exported model."""

from pathlib import Path


class ModelError(RuntimeError):
    """An export folder is missing, damaged, of another version, or does not do what its proof says.

    Args:
        message: what was found, what was expected and the remedy.
        path: file or folder in question.

    Example:
        >>> str(ModelError("there is no model.json", path="exports/nano"))
        'there is no model.json [exports/nano]'
    """

    def __init__(self, message: str, *, path: str | Path) -> None:
        self.message = message
        self.path = str(path)
        super().__init__(f"{message} [{path}]")

    def __reduce__(self) -> tuple:
        return (_rebuild, (self.message, self.path))


def _rebuild(message: str, path: str) -> ModelError:
    return ModelError(message, path=path)

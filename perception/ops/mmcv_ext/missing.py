"""What stands for an op of ``mmcv._ext`` that has no torch version here."""

from typing import NoReturn, Protocol


class MissingOp(Protocol):
    """A named function that raises whatever it is called with."""

    __name__: str

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        """Raises ``NotImplementedError``."""
        ...


def missing_op(name: str) -> MissingOp:
    """Returns a function that, once called, raises ``NotImplementedError`` naming the op and the remedy.

    Serves as the extension module's ``__getattr__``: ``mmcv.ops`` asks for all its ops at import, and an op
    nobody calls must not stop that import.

    Raises:
        AttributeError: for names with leading double underscores, which are Python's own protocol.
    """
    if name.startswith("__"):
        raise AttributeError(f"module 'mmcv._ext' has no attribute {name!r}")

    def missing(*args: object, **kwargs: object) -> NoReturn:
        raise NotImplementedError(
            f"mmcv op {name!r} needs mmcv's compiled extension, which this installation lacks (mmcv-lite, "
            "with the torch ops of perception.ops.mmcv_ext in its place). In place of mmcv-lite, install an "
            "mmcv 2.1.0 wheel that matches this torch, or compile one (about 40 minutes on 2 cores): "
            "MMCV_WITH_OPS=1 pip install --no-binary mmcv mmcv==2.1.0"
        )

    missing.__name__ = name
    return missing

"""Serves ``mmcv._ext`` from :mod:`perception.ops.mmcv_ext` when mmcv has no compiled one.

Free of torch and of mmcv at import. The finder stands at the end of ``sys.meta_path``: Python's own finders
look first, so a compiled ``mmcv._ext`` is always preferred and never touched.
"""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_SERVED = "mmcv._ext"
_SOURCE = "perception.ops.mmcv_ext"


class _FallbackLoader(Loader):
    """Fills ``mmcv._ext`` with the contents of :mod:`perception.ops.mmcv_ext`."""

    def exec_module(self, module: ModuleType) -> None:
        source = importlib.import_module(_SOURCE)
        module.__doc__ = source.__doc__
        for name in (*source.__all__, "__all__", "__getattr__"):
            setattr(module, name, getattr(source, name))


class MMCVExtFinder(MetaPathFinder):
    """Answers for ``mmcv._ext`` only; every other name is left to the other finders."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Returns a spec for ``mmcv._ext``, else None."""
        if fullname != _SERVED:
            return None
        return ModuleSpec(fullname, _FallbackLoader(), origin=_SOURCE)


def install() -> None:
    """Appends the finder to ``sys.meta_path``. A second call changes nothing.

    Example:
        >>> from perception.ops.mmcv_finder import install
        >>> install()
        >>> from mmcv.ops import nms
    """
    if not any(isinstance(finder, MMCVExtFinder) for finder in sys.meta_path):
        sys.meta_path.append(MMCVExtFinder())


def uses_fallback() -> bool:
    """True if ``mmcv._ext`` is, or would be, the stand-in rather than a compiled extension.

    Imports mmcv's top level (which is free of torch), but not ``mmcv._ext``.

    Raises:
        ModuleNotFoundError: mmcv is not installed.
    """
    loaded = sys.modules.get(_SERVED)
    if loaded is not None:
        spec = loaded.__spec__
    else:
        spec = importlib.util.find_spec(_SERVED)
    return spec is not None and isinstance(spec.loader, _FallbackLoader)

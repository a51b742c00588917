"""Keeps MMEngine from importing DeepSpeed, which it does wherever it finds it, for a strategy that is not used here.

The import takes seconds, prints to the standard output and fixes the accelerator. Only
`perception.engine.deepspeed_strategy` needs it, and imports it itself once a run has chosen it.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import cast

_GUARDED = "mmengine._strategy.deepspeed"
_HIDDEN = "deepspeed"


class DeepSpeedHider(MetaPathFinder):
    """Answers for MMEngine's DeepSpeed module only, which then takes DeepSpeed as not installed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec as Python finds it, with a guarded execution; None for every other name."""
        spec = PathFinder.find_spec(fullname, path, target) if fullname == _GUARDED else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            if _HIDDEN in sys.modules:
                execute(module)
                return
            sys.modules[_HIDDEN] = cast(ModuleType, None)
            try:
                execute(module)
            finally:
                del sys.modules[_HIDDEN]

        setattr(spec.loader, "exec_module", exec_module)  # noqa: B010  a method, which mypy lets nobody assign
        return spec


def install() -> None:
    """Puts the finder before Python's own. A second call changes nothing."""
    if not any(isinstance(finder, DeepSpeedHider) for finder in sys.meta_path):
        sys.meta_path.insert(0, DeepSpeedHider())

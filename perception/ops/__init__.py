"""Operators: deformable attention, and the stand-in for mmcv's compiled extension.

The names are loaded on first use, so that ``import perception`` stays free of torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perception.ops.deformable_attention import multi_scale_deformable_attention

__all__ = ["multi_scale_deformable_attention"]

_HOME = {"multi_scale_deformable_attention": "perception.ops.deformable_attention"}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)

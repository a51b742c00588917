"""In which number format forwards run: the same in training, evaluation and prediction."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch

Precision = Literal["fp32", "bf16", "fp16", "auto"]
_CHOICES = ("fp32", "bf16", "fp16", "auto")
_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
_FP16_CAPABILITY = (7, 0)  # the first with tensor cores


def resolve_precision(precision: str) -> str:
    """What a precision means here.

    "auto" is bf16 where CUDA has it in hardware, fp16 on the older cards with tensor cores (V100, T4), else fp32.

    Raises:
        ValueError: not one of "fp32", "bf16", "fp16", "auto".
    """
    if precision not in _CHOICES:
        raise ValueError(f"precision is {precision!r}; allowed: 'fp32', 'bf16', 'fp16', 'auto'")
    if precision != "auto":
        return precision
    if not torch.cuda.is_available():
        return "fp32"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16"
    return "fp16" if torch.cuda.get_device_capability() >= _FP16_CAPABILITY else "fp32"


def precision_of(optim_wrapper: Any) -> str:
    """The resolved precision of an optimiser wrapper or its config; fp32 where there is none."""
    if isinstance(optim_wrapper, dict):
        return resolve_precision(optim_wrapper.get("precision", "fp32"))
    return resolve_precision(getattr(optim_wrapper, "precision", "fp32"))


def autocast(precision: str) -> AbstractContextManager:
    """The context under which forwards run, also on a CPU."""
    resolved = resolve_precision(precision)
    if resolved == "fp32":
        return nullcontext()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.autocast(device_type=device, dtype=_HALF[resolved])

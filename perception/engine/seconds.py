"""Limits of time that a config sets."""

import math
from typing import Any


def check_seconds(value: Any, what: str) -> float:
    """The number of seconds, as a float.

    Args:
        value: as the config has it.
        what: its name, for the message.

    Raises:
        ValueError: it is no number, not finite, or below 1.

    Example:
        >>> check_seconds(120, "timeout_s")
        120.0
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value < 1:
        raise ValueError(f"{what} is {value!r}; allowed: a number of seconds from 1 on")
    return float(value)

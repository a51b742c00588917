"""A nested configuration as one list of dotted keys."""

from collections.abc import Iterator, Mapping
from typing import Any


def flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values; numbers are places in lists; empty ones are values.

    Example:
        >>> list(flatten({"a": {"b": [1, {"c": 2}]}, "d": {}}))
        [('a.b.0', 1), ('a.b.1.c', 2), ('d', {})]
    """
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    if not items or not value:
        if path:
            yield path, value
        return
    for key, inner in items:
        yield from flatten(inner, f"{path}.{key}" if path else str(key))

"""Lists in messages."""

from collections.abc import Sequence

_MAX_NAMED = 5


def name_some(names: Sequence[str]) -> str:
    """The first five names, and how many there are beyond them.

    Example:
        >>> name_some("abcdefg")
        'a, b, c, d, e and 2 more'
    """
    rest = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {rest} more" if rest > 0 else "")

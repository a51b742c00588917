"""Nearest names for a misspelt word."""

from collections.abc import Iterable


def edit_distance(a: str, b: str) -> int:
    """Number of insertions, deletions, substitutions and swaps of neighbours that turn ``a`` into ``b``.

    Source: Damerau 1964, in the optimal-string-alignment form.

    Example:
        >>> edit_distance("interval", "intreval"), edit_distance("lr", "lrr")
        (1, 1)
    """
    before: list[int] = []
    last = list(range(len(b) + 1))
    for i, char_a in enumerate(a, start=1):
        row = [i]
        for j, char_b in enumerate(b, start=1):
            cost = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (char_a != char_b))
            if i > 1 and j > 1 and char_a == b[j - 2] and a[i - 2] == char_b:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        before, last = last, row
    return last[-1]


def closest(word: str, options: Iterable[str], *, count: int = 1) -> list[str]:
    """Up to ``count`` options that are near enough to ``word`` to be what was meant, nearest first.

    Near enough: at most a third of the longer word's letters differ (at least one may), or one begins with the other.

    Example:
        >>> closest("bev_hh", ["bev_h", "bev_w", "num_query"], count=2)
        ['bev_h', 'bev_w']
    """
    ranked = []
    for option in sorted(set(options)):
        distance = edit_distance(word.lower(), option.lower())
        allowed = max(1, max(len(word), len(option)) // 3)
        is_prefix = min(len(word), len(option)) >= 3 and (option.startswith(word) or word.startswith(option))
        if distance <= allowed or is_prefix:
            ranked.append((distance, option[:1] != word[:1], abs(len(option) - len(word)), option))
    return [entry[-1] for entry in sorted(ranked)[:count]]


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """A sentence to put at the end of an error message, or nothing.

    Returns:
        ``" Did you mean 'x'?"`` for the nearest option, ``""`` where none is near.

    Example:
        >>> did_you_mean("max_epoch", ["max_epochs", "val_interval"])
        " Did you mean 'max_epochs'?"
    """
    found = closest(word, options)
    return f" Did you mean {found[0]!r}?" if found else ""

"""Configurations and environments side by side: what all runs share, and where they differ."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perception.config import flatten
from perception.visualization.run_groups import RunGroup, settings

_MAX_LENGTH = 100
_ABSENT = object()


@dataclass(frozen=True)
class Difference:
    """A setting and its text in each method, "–" where one does not have it."""

    key: str
    texts: list[str]


def config_differences(groups: Sequence[RunGroup]) -> list[Difference]:
    """Settings in which the methods' first runs differ; those of the seed, and of places, are left out."""
    configs = []
    for group in groups:
        config = settings(group.first.summary.config)
        config.pop("randomness", None)
        configs.append(config)
    return differing(configs)


def environment_rows(groups: Sequence[RunGroup]) -> tuple[list[tuple[str, str]], list[Difference]]:
    """What all environments share, and where they differ."""
    rows = differing([group.first.summary.env for group in groups])
    keys = tuple(f"{row.key}." for row in rows)
    shared = [
        (key, _text(value))
        for key, value in flatten(groups[0].first.summary.env)
        if not f"{key}.".startswith(keys)
    ]
    return shared, rows


def differing(values: Sequence[Any], key: str = "") -> list[Difference]:
    """Rows of what differs, as deep as the structures are the same.

    A part that one of them lacks, or that is of another type, is one row.

    Example:
        >>> rows = differing([{"a": 1, "b": {"type": "x.Y", "n": 1}}, {"a": 1, "b": {"type": "x.Y", "n": 2}}, {"a": 1}])
        >>> [(row.key, row.texts) for row in rows]
        [('b', ['Y(n=1)', 'Y(n=2)', '–'])]
        >>> pipelines = [[{"type": "Load"}, {"type": "Flip", "p": 0.5}], [{"type": "Load"}, {"type": "Flip", "p": 0.1}]]
        >>> [(row.key, row.texts) for row in differing(pipelines, "pipeline")]
        [('pipeline.Flip.p', ['0.5', '0.1'])]
    """
    if all(value == values[0] for value in values):
        return []
    if all(isinstance(value, Mapping) for value in values) and (not key or _same_type(values)):
        parts = list(values)
    else:
        parts = [named for value in values if (named := _by_type(value)) is not None]
    if len(parts) < len(values) or all(part == parts[0] for part in parts):
        present = [value for value in values if value is not _ABSENT and value is not None]
        is_all_or_nothing = 0 < len(present) < len(values) and all(value == present[0] for value in present)
        return [Difference(key, [_text(value, is_brief=is_all_or_nothing) for value in values])]
    names = dict.fromkeys(name for part in parts for name in part)
    return [
        row
        for name in names
        for row in differing([part.get(name, _ABSENT) for part in parts], f"{key}.{name}" if key else name)
    ]


def _same_type(values: Sequence[Mapping[str, Any]]) -> bool:
    return all(value.get("type") == values[0].get("type") for value in values)


def _by_type(value: Any) -> dict[str, Any] | None:
    """Members of a list by the names of their types, a pipeline for example; None of any other list."""
    if not isinstance(value, list) or not all(
        isinstance(member, Mapping) and "type" in member for member in value
    ):
        return None
    found: dict[str, Any] = {}
    for member in value:
        name = _type(member)
        number = sum(key.partition(" ")[0] == name for key in found)
        found[f"{name} {number + 1}" if number else name] = member
    return found


def _text(value: Any, *, is_brief: bool = False) -> str:
    if value is _ABSENT:
        return "–"
    if is_brief and isinstance(value, Mapping) and "type" in value:
        return f"{_type(value)}(…)"
    text = value if isinstance(value, str) else _short(value)
    return text if len(text) <= _MAX_LENGTH else text[: _MAX_LENGTH - 1] + "…"


def _type(value: Mapping[str, Any]) -> str:
    return str(value["type"]).rpartition(".")[2]


def _short(value: Any) -> str:
    """JSON, but structures with a type as calls: `Resize(size=[352, 198])`."""
    if isinstance(value, Mapping):
        rest = {key: item for key, item in value.items() if key != "type"}
        if "type" in value:
            inside = ", ".join(f"{key}={_short(item)}" for key, item in rest.items())
            return f"{_type(value)}({inside})"
        return "{" + ", ".join(f"{key}: {_short(item)}" for key, item in rest.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_short(item) for item in value) + "]"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

"""``--set key=value``: change single values of a loaded config."""

import ast
import json
from collections.abc import Callable, Iterable, Set
from typing import Any

from perception.config.errors import ConfigError
from perception.config.suggest import did_you_mean

AcceptedKeys = Callable[[str], Set[str] | None]


def parse_override(text: str) -> tuple[str, Any]:
    """Split ``key=value`` and read the value as JSON, else as a Python literal, else as plain text.

    Raises:
        ConfigError: there is no ``=``, or a list, dict, tuple or quoted text is not closed.

    Example:
        >>> parse_override("train_cfg.max_epochs=3"), parse_override("work_dir=runs/a")
        (('train_cfg.max_epochs', 3), ('work_dir', 'runs/a'))
    """
    key, separator, value = text.partition("=")
    key, value = key.strip(), value.strip()
    if not separator or not key:
        raise ConfigError(f"--set {text!r}: expected key=value, for example --set train_cfg.max_epochs=3.")
    try:
        return key, json.loads(value)
    except ValueError:
        pass
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        if value[:1] in "[{('\"" and value:
            raise ConfigError(f"--set {key}: {value!r} is neither JSON nor a Python literal.") from None
        return key, value


def apply_overrides(root: dict, overrides: Iterable[tuple[str, Any]], accepted: AcceptedKeys) -> None:
    """Put values into ``root``, a nested dict that the caller owns.

    A key must exist already, or be one that the constructor at that place accepts. A dict replaces what was there.

    Args:
        root: changed in place.
        overrides: pairs of dotted key (numbers index lists) and value.
        accepted: keys allowed in the dict at a dotted path ("" is the top); None where that is not known.

    Raises:
        ConfigError: naming every key that does not exist, each with the nearest that does.
    """
    problems = []
    for key, value in overrides:
        try:
            _apply_one(root, key, value, accepted)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(f"{len(problems)} override(s) cannot be applied:", problems=problems)


def _apply_one(root: dict, key: str, value: Any, accepted: AcceptedKeys) -> None:
    parts = key.split(".")
    node: Any = root
    for depth, part in enumerate(parts):
        path = ".".join(parts[:depth])
        is_last = depth == len(parts) - 1
        if isinstance(node, dict):
            allowed = (accepted(path) or set()) | {str(name) for name in dict.keys(node)}
            exists = dict.__contains__(node, part)
            if not exists and not (is_last and part in allowed):
                place = f"{path!r}" if path else "the top of the config"
                raise ConfigError(
                    f"--set {key}: there is no {part!r} at {place}.{did_you_mean(part, allowed)}"
                )
            if is_last:
                node[part] = value
                return
            node = dict.__getitem__(node, part)
        elif isinstance(node, list):
            if not part.lstrip("-").isdigit() or not -len(node) <= int(part) < len(node):
                raise ConfigError(
                    f"--set {key}: {path!r} is a list of {len(node)}; {part!r} is no index into it."
                )
            if is_last:
                node[int(part)] = value
                return
            parts[depth] = str(int(part) % len(node))  # counted from the front from here on
            node = node[int(part)]
        else:
            raise ConfigError(
                f"--set {key}: {path!r} is {node!r} and has nothing inside; set it as a whole, "
                f"for example --set '{path}={{\"{part}\": ...}}'."
            )

"""A config as JSON-able values and back: what a run folder's ``config.json`` holds."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config
from mmengine.config.lazy import LazyAttr, LazyObject

from perception.config.errors import ConfigError
from perception.config.types import has_allowed_prefix, refuse_prefix, text_to_lazy, type_name


def dump_json(cfg: Config | Mapping[str, Any]) -> dict[str, Any]:
    """A config as JSON-able values; types become dotted names, tuples become lists.

    Raises:
        ConfigError: a value has no JSON form.

    Example:
        >>> dump_json({"optimizer": {"type": LazyObject("torch.optim", "AdamW"), "betas": (0.9, 0.99)}})
        {'optimizer': {'type': 'torch.optim.AdamW', 'betas': [0.9, 0.99]}}
    """
    return _to_plain(cfg._cfg_dict if isinstance(cfg, Config) else cfg, "")


def config_hash(cfg: Config | Mapping[str, Any]) -> str:
    """SHA-256 of the config's canonical JSON; equal configs have equal hashes, wherever they were written.

    Example:
        >>> config_hash({"a": 1, "b": 2}) == config_hash({"b": 2, "a": 1})
        True
    """
    text = json.dumps(dump_json(cfg), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def config_from_json(data: Mapping[str, Any]) -> Config:
    """A config from JSON-able values, e.g. a run folder's ``config.json``.

    Raises:
        ConfigError: a type lies outside the allowed prefixes or cannot be found. All types are compared with the
            prefixes before the first of them is imported.
    """
    refused = [
        refuse_prefix(value, key)
        for key, value in _types(data, "")
        if not isinstance(value, str) or not has_allowed_prefix(value)
    ]
    if "_base_" in data or "custom_imports" in data:
        refused.append("_base_ and custom_imports are not supported here; write one complete config.")
    if refused:
        raise ConfigError("The config was refused, nothing of it was loaded:", problems=refused)
    return Config(_from_plain(data, ""), format_python_code=False)


def _types(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            where = f"{path}.{key}" if path else str(key)
            if key == "type" and not isinstance(inner, (Mapping, list)):
                yield where, inner
            else:
                yield from _types(inner, where)
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from _types(inner, f"{path}.{index}")


def _from_plain(value: Any, path: str) -> Any:
    if isinstance(value, Mapping):
        result = {}
        for key, inner in value.items():
            where = f"{path}.{key}" if path else str(key)
            is_type = key == "type" and isinstance(inner, str)
            result[key] = text_to_lazy(inner, where) if is_type else _from_plain(inner, where)
        return result
    if isinstance(value, (list, tuple)):
        return [_from_plain(inner, f"{path}.{index}") for index, inner in enumerate(value)]
    return value


def _to_plain(value: Any, path: str) -> Any:
    if isinstance(value, Mapping):
        items = dict.items(value) if isinstance(value, dict) else value.items()
        return {str(key): _to_plain(inner, f"{path}.{key}" if path else str(key)) for key, inner in items}
    if isinstance(value, (list, tuple)):
        return [_to_plain(inner, f"{path}.{index}") for index, inner in enumerate(value)]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ConfigError(f"{path}: {value} has no JSON form; use a finite number or None.")
        return value
    if isinstance(value, (LazyObject, LazyAttr)) or hasattr(value, "__qualname__"):
        return type_name(value)
    raise ConfigError(f"{path}: {value!r} of type {type(value).__name__} has no JSON form.")

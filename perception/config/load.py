"""Load a config by path or short name, with every rule of the config style checked before anything runs."""

import ast
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from mmengine.config import Config, ConfigDict
from mmengine.config.lazy import LazyAttr, LazyObject

from perception.config.errors import ConfigError
from perception.config.names import find_config
from perception.config.overrides import apply_overrides, parse_override
from perception.config.rules import assigned_names, base_files, check_rules
from perception.config.serialise import config_from_json
from perception.config.types import text_to_lazy
from perception.config.walk import walk_config

EXPORT_FILE = "model.json"
"""In an export folder; the config that the model was trained with stands in it, see `perception.runtime.manifest`."""


def load_config(path_or_short_name: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Load a config: a path, a short name, a run folder with a ``config.json``, or an export folder.

    Args:
        path_or_short_name: e.g. ``configs/bevformer/x.py``, ``bevformer_nano``, ``work_dirs/run`` or ``x.json``.
        overrides: ``key=value`` texts as of ``--set``.

    Returns:
        The config with public keys only; types are lazy imports that MMEngine resolves on access.

    Raises:
        ConfigError: no such config, a broken rule, a refused type or an override that fits nothing.

    Example:
        >>> load_config("bevformer_nano", ["train_cfg.max_epochs=1"]).train_cfg.max_epochs
        1
    """
    path = Path(path_or_short_name)
    if (path / EXPORT_FILE).is_file():
        return override_config(_load_export(path / EXPORT_FILE), overrides)
    path = path / "config.json" if (path / "config.json").is_file() else find_config(path_or_short_name)
    cfg = _load_python(path) if path.suffix == ".py" else _load_text(path)
    return override_config(cfg, overrides)


def override_config(cfg: Config, overrides: Iterable[str]) -> Config:
    """A copy of ``cfg`` with ``key=value`` texts applied; types in the values are checked like those in JSON.

    Raises:
        ConfigError: an override is malformed, names an unknown key or a refused type.
    """
    pairs = [parse_override(text) for text in overrides]
    if not pairs:
        return cfg
    plain = copy_plain(cfg._cfg_dict)
    pairs = [(key, _checked_value(key, value)) for key, value in pairs]
    known = {place.path: place.accepted for place in walk_config(plain, is_static=True)}
    apply_overrides(plain, pairs, known.get)
    return _wrap(plain, cfg.filename)


def copy_plain(value: Any) -> Any:
    """Nested plain dicts and lists with the same leaves; lazy imports stay lazy."""
    if isinstance(value, dict):
        return {key: copy_plain(inner) for key, inner in dict.items(value)}
    if isinstance(value, list):
        return [copy_plain(inner) for inner in value]
    if isinstance(value, tuple):
        return tuple(copy_plain(inner) for inner in value)
    return value


def _wrap(plain: dict, filename: str | Path | None) -> Config:
    return Config(
        ConfigDict(plain), filename=None if filename is None else str(filename), format_python_code=False
    )


def _load_python(path: Path) -> Config:
    problems: list[str] = []
    names = _origins(path.resolve(), problems, {})
    if problems:
        raise ConfigError(f"{path} breaks the rules for configs:", problems=problems)
    try:
        loaded = Config.fromfile(str(path), lazy_import=True, format_python_code=False)
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001  whatever a config's expressions raise is the config's fault
        raise ConfigError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error
    plain = {
        key: copy_plain(value)
        for key, value in dict.items(loaded._cfg_dict)
        if key in names and not key.startswith("_") and not isinstance(value, (LazyObject, LazyAttr))
    }
    return _wrap(plain, path.resolve())


def _load_text(path: Path) -> Config:
    data = _read_text(path)
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds {type(data).__name__}; a config is a mapping at its top.")
    cfg = config_from_json(data)
    return _wrap(copy_plain(cfg._cfg_dict), path.resolve())


def _load_export(path: Path) -> Config:
    content = _read_text(path)
    config = content.get("training_config") if isinstance(content, dict) else None
    if not isinstance(config, dict):
        raise ConfigError(f"{path} holds no training_config; export the model again.")
    return _wrap(copy_plain(config_from_json(config)._cfg_dict), path.resolve())


def _read_text(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as {path.suffix.lstrip('.').upper()}: {error}") from error


def _origins(path: Path, problems: list[str], seen: dict[Path, dict[str, Path]]) -> dict[str, Path]:
    """Which file defines each name that a config offers; appends every broken rule of it and of its bases."""
    if path in seen:
        return seen[path]
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except (OSError, SyntaxError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as Python: {error}") from error
    problems.extend(check_rules(tree, path))
    names: dict[str, Path] = {}
    for base, wanted in base_files(tree, path):
        offered = _origins(base, problems, seen)
        for name, origin in offered.items():
            if wanted is not None and name not in wanted:
                continue
            if name in names and names[name] != origin:
                problems.append(
                    f"{path}: the name {name!r} is defined by two bases, {names[name]} and {origin}; "
                    "import it from one of them only, or rename it."
                )
            names[name] = origin
    names.update(dict.fromkeys(assigned_names(tree), path))
    seen[path] = names
    return names


def _checked_value(key: str, value: Any) -> Any:
    """The override's value with its types, if any, checked and made importable."""
    if key.rpartition(".")[2] == "type" and isinstance(value, str):
        return text_to_lazy(value, key)
    if isinstance(value, (dict, list)):
        return copy_plain(config_from_json({key: value})._cfg_dict)[key]
    return value

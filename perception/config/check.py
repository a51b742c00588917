"""Everything that can be known about a config without a GPU, data or a model, all problems at once."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from perception.config.agreement import disagreements
from perception.config.errors import ConfigError
from perception.config.image_sizes import image_size_problems
from perception.config.streams import stream_problems
from perception.config.walk import walk_config


def check_config(cfg: Config | Mapping[str, Any]) -> None:
    """Check a config: keys, types, plain values, grids, class lists, work directory.

    Builds nothing and reads no data; what the data paths lack is told by :func:`perception.config.missing_data`.

    Raises:
        ConfigError: with every problem, its dotted key and, for a misspelt key, the nearest right one.

    Example:
        >>> from perception.config import load_config
        >>> check_config(load_config("bevformer_nano"))
    """
    problems = config_problems(cfg)
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigError(f"The config has {count}:", problems=problems)


def config_problems(cfg: Config | Mapping[str, Any]) -> list[str]:
    """What :func:`check_config` would report; empty if the config is fine."""
    root: Any = cfg._cfg_dict if isinstance(cfg, Config) else cfg
    others = [
        *disagreements(root),
        *image_size_problems(root),
        *stream_problems(root),
        *_work_dir_problems(root),
    ]
    # First without importing anything: a misspelt key is told at once, not after the seconds that torch takes.
    misspelt = [problem for place in walk_config(root, is_static=True) for problem in place.problems]
    if misspelt:
        return [*misspelt, *others]
    return [*(problem for place in walk_config(root) for problem in place.problems), *others]


def _work_dir_problems(root: Mapping[str, Any]) -> list[str]:
    work_dir = root.get("work_dir")
    if not isinstance(work_dir, str):
        return []
    path = Path(work_dir).absolute()
    if path.exists() and not path.is_dir():
        return [f"work_dir: {work_dir} is a file; give a folder by --work-dir."]
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        return [f"work_dir: {existing} cannot be written; give another folder by --work-dir."]
    return []

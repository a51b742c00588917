"""From a command's arguments to a checked config: used by the verbs that train, test and predict."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from perception.cli._model import ModelChoice


def load_checked(
    name: str | Path, args: argparse.Namespace, *, loaders: Iterable[str], work_dir: str | None = None
) -> Any:
    """Load a config, apply ``--data-root`` and ``--set``, set the work directory, and check it and its data.

    Args:
        name: config, short name or run folder.
        args: has ``overrides``, and ``data_root`` where the verb has that option.
        loaders: the data loaders whose data must be there.
        work_dir: run folder; None keeps the config's.

    Raises:
        ConfigError: the config is wrong.
        DataError: data is missing.
    """
    from perception.config import check_config, missing_data
    from perception.utils import DataError

    cfg = load_changed(name, args)
    if work_dir is not None:
        cfg.work_dir = work_dir
    check_config(cfg)
    if any(cfg.get(key) for key in ("optim_wrapper", "default_hooks", "strategy")):
        from perception.engine import check_balancing, check_hooks

        check_balancing(cfg)
        check_hooks(cfg)
    missing = missing_data(cfg, loaders=loaders)
    if not missing:
        from perception.datasets import image_cache_problems

        missing = image_cache_problems(cfg, loaders=loaders)
    if missing:
        raise DataError("\n".join(missing))
    return cfg


def load_changed(name: str | Path, args: argparse.Namespace) -> Any:
    """Load a config and apply ``--data-root``, then ``--set``.

    Raises:
        ConfigError: the config is wrong, or an option does not fit it.
    """
    from perception.config import load_config, override_config, with_data_root

    cfg = load_config(name)
    if getattr(args, "data_root", None) is not None:
        cfg = with_data_root(cfg, args.data_root)
    return override_config(cfg, args.overrides)


def default_work_dir(name: str | Path) -> str:
    """``work_dirs/<short name>``, or after the file where it has no short name."""
    from perception.config import ConfigError, find_config, parse_config_name

    path = find_config(name)
    try:
        return str(Path("work_dirs") / parse_config_name(path).short)
    except ConfigError:
        return str(Path("work_dirs") / path.stem)


def choose_model(name: str, checkpoint: str | None) -> ModelChoice:
    """What a MODEL_OR_CONFIG argument means.

    A run folder, a step folder or a ``.safetensors`` file inside one brings its own config, and so does an export
    folder; a config name needs ``--checkpoint`` for its weights.

    Raises:
        ConfigError: a weights file that belongs to no run folder, or weights beside an export folder.
    """
    from perception.config import ConfigError

    path = Path(name)
    if (path / "model.json").is_file():
        if checkpoint is not None:
            raise ConfigError(
                f"{name} is an export folder, whose weights are in its graph; leave --checkpoint out."
            )
        return ModelChoice(config=name, checkpoint=None, run_dir=None, export=path)
    if path.is_dir() or path.suffix == ".safetensors":
        start = path.absolute()
        for folder in (start, *start.parents)[:4]:
            if (folder / "config.json").is_file():
                return ModelChoice(config=str(folder), checkpoint=checkpoint or name, run_dir=folder)
        if path.is_dir() and not (path / "checkpoints").exists() and not (path / "manifest.json").exists():
            raise ConfigError(
                f"{name} is no run folder: it has neither config.json nor checkpoints; nor an export, with model.json."
            )
        raise ConfigError(
            f"{name} belongs to no run folder with a config.json; give the config and --checkpoint {name}."
        )
    return ModelChoice(config=name, checkpoint=checkpoint, run_dir=None)


def require_weights(choice: ModelChoice, remedy: str) -> str:
    """The checkpoint of a choice, which must have one.

    Raises:
        ConfigError: it names no weights, or there is neither such a config nor such a folder.
    """
    from perception.config import ConfigError, find_config

    if choice.checkpoint is not None:
        return choice.checkpoint
    if choice.export is not None:
        raise ConfigError(
            f"{choice.config} is an export folder; give the run folder or a checkpoint of the model."
        )
    find_config(choice.config)
    raise ConfigError(f"{choice.config} is a config and names no weights; {remedy}")

"""Short config names: ``bevformer_nano`` for ``bevformer_nano_r18_det-seg_1xb1_4e_nuscenes-synthetic.py``.

File names follow ``<model>_<backbone>_<tasks>_<gpus>xb<batch>_<schedule>_<dataset>.py``. The short name is the model,
followed by ``_<tasks>`` when the tasks are not ``det-seg``; two files with one short name need ``_<dataset>`` more. A
model that has one config only is found by its bare name too: ``bevformer_official_tiny``.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from perception.config.errors import ConfigError
from perception.config.suggest import closest

DEFAULT_TASKS = "det-seg"
_PATTERN = re.compile(
    r"(?P<model>[a-z0-9]+(?:_[a-z0-9]+)*)_(?P<backbone>r\d+[a-z0-9-]*|v2-\d+|dla\d+)_(?P<tasks>det-seg|det|seg)"
    r"(?P<variant>(?:-[a-z0-9]+)*)_(?P<gpus>\d+)xb(?P<batch>\d+)_(?P<schedule>[a-z0-9-]+)_(?P<dataset>[a-z0-9-]+)"
)


@dataclass(frozen=True)
class ConfigName:
    """A config file and the parts of its name.

    Attributes:
        path: the file.
        model: e.g. ``bevformer_nano``.
        backbone: e.g. ``r18``.
        tasks: ``det-seg``, ``det`` or ``seg``, with a balancer's name after it where one is used.
        num_gpus: ranks that the recipe was written for.
        batch_size: samples per rank.
        schedule: e.g. ``24e``.
        dataset: e.g. ``nuscenes`` or ``nuscenes-synthetic``.
    """

    path: Path
    model: str
    backbone: str
    tasks: str
    num_gpus: int
    batch_size: int
    schedule: str
    dataset: str

    @property
    def short(self) -> str:
        """The model, and the tasks where they are not the usual ones."""
        return self.model if self.tasks == DEFAULT_TASKS else f"{self.model}_{self.tasks}"


def parse_config_name(path: str | Path) -> ConfigName:
    """Split a config's file name into its parts.

    Raises:
        ConfigError: the name does not follow the pattern.

    Example:
        >>> parse_config_name("bevformer_nano_r18_det_1xb1_4e_nuscenes-synthetic.py").short
        'bevformer_nano_det'
    """
    path = Path(path)
    match = _PATTERN.fullmatch(path.stem)
    if match is None:
        raise ConfigError(
            f"The config file name {path.name!r} does not follow "
            "<model>_<backbone>_<tasks>_<gpus>xb<batch>_<schedule>_<dataset>.py; rename the file."
        )
    return ConfigName(
        path=path,
        model=match["model"],
        backbone=match["backbone"],
        tasks=match["tasks"] + match["variant"],
        num_gpus=int(match["gpus"]),
        batch_size=int(match["batch"]),
        schedule=match["schedule"],
        dataset=match["dataset"],
    )


def config_roots() -> list[Path]:
    """Folders in which configs are looked for: ``configs`` and ``projects/*/configs`` here and in the repository."""
    roots: list[Path] = []
    for base in (Path.cwd(), Path(__file__).resolve().parents[2]):
        for folder in (base / "configs", *sorted((base / "projects").glob("*/configs"))):
            if folder.is_dir() and folder.resolve() not in roots:
                roots.append(folder.resolve())
    return roots


def list_configs() -> list[ConfigName]:
    """Every config that follows the naming pattern, sorted by short name; ``_base_`` folders are left out."""
    found = {}
    for root in config_roots():
        for path in sorted(root.rglob("*.py")):
            inside = path.relative_to(root).parts
            if not any(part.startswith("_") for part in inside) and _PATTERN.fullmatch(path.stem):
                found[path] = parse_config_name(path)
    return sorted(found.values(), key=lambda name: (name.short, name.path.name))


def find_config(name: str | Path) -> Path:
    """The config file that a path, a full file name or a short name stands for.

    Raises:
        ConfigError: nothing or more than one file fits.

    Example:
        >>> find_config("bevformer_nano").name.startswith("bevformer_nano_")
        True
    """
    text = os.fspath(name)
    as_path = Path(text)
    if as_path.is_file():
        return as_path
    if as_path.suffix in {".py", ".json", ".yaml", ".yml"} and len(as_path.parts) > 1:
        for root in config_roots():
            candidate = root.parent / as_path
            if candidate.is_file():
                return candidate
        siblings = as_path.parent.glob(f"*{as_path.suffix}") if as_path.parent.is_dir() else ()
        near = closest(as_path.name, [path.name for path in siblings])
        hint = f" Did you mean {str(as_path.parent / near[0])!r}?" if near else ""
        raise ConfigError(f"The config file {text!r} does not exist.{hint}")
    stem = as_path.name.removesuffix(".py")
    known = list_configs()
    keys = (
        lambda c: c.path.stem,
        lambda c: c.short,
        lambda c: f"{c.short}_{c.dataset}",
        lambda c: c.model,
    )
    for key in keys:
        matches = [config for config in known if key(config) == stem]
        if len(matches) == 1:
            return matches[0].path
        if matches:
            options = ", ".join(config.path.stem for config in matches)
            raise ConfigError(
                f"The config name {text!r} stands for {len(matches)} files: {options}. Name one of them."
            )
    near = closest(stem, [config.short for config in known] + [config.path.stem for config in known])
    hint = f" Did you mean {near[0]!r}?" if near else ""
    options = ", ".join(sorted({config.short for config in known})) or "none found"
    raise ConfigError(
        f"No config is called {text!r}.{hint} Known short names: {options}; or give a path to a file."
    )

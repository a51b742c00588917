"""What a config's image caches lack, found before a training meets it."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from perception.config.image_sizes import step_name
from perception.datasets._packed import image_sizes
from perception.datasets.image_cache import ImageCache, cache_command
from perception.utils import DataError

_NUM_OPENED = 60


def image_cache_problems(cfg: Config | Mapping[str, Any], *, loaders: Iterable[str]) -> list[str]:
    """What is wrong with the image caches that some loaders read, one sentence with the remedy each.

    Every image that the index names must have its copy; of these copies some are opened, spread evenly, and compared
    with their originals. Loading compares all of them, one by one.

    Args:
        cfg: the config.
        loaders: names of the loaders that are going to be used.

    Returns:
        Empty if all is well or no cache is used.
    """
    root: Any = cfg._cfg_dict if isinstance(cfg, Config) else cfg
    problems: list[str] = []
    seen = set()
    for loader in loaders:
        dataset = (root.get(loader) or {}).get("dataset")
        if not isinstance(dataset, Mapping):
            continue
        for step in dataset.get("pipeline") or ():
            if step_name(step) != "LoadMultiViewImages" or step.get("cache_dir") is None:
                continue
            # Validation and test mostly read the same, and the full set's index takes seconds to read.
            keys = [dataset.get(name) for name in ("data_root", "ann_file", "on_error")]
            keys += [step["target_size"], step["cache_dir"], _interpolation(dataset)]
            if str(keys) not in seen:
                seen.add(str(keys))
                problems += _problems(dataset, step)
    return list(dict.fromkeys(problems))


def _interpolation(dataset: Mapping[str, Any]) -> str | None:
    for step in dataset["pipeline"]:
        if step_name(step) == "ResizeMultiView":
            return step.get("interpolation", "bilinear")
    return None


def _problems(dataset: Mapping[str, Any], step: Mapping[str, Any]) -> Iterator[str]:
    width, height = step["target_size"]
    cache_dir, data_root = step["cache_dir"], dataset["data_root"]
    try:
        cache = ImageCache(cache_dir=cache_dir, data_root=data_root, size=(width, height))
        interpolation = _interpolation(dataset)
        if interpolation not in (None, cache.settings.interpolation):
            yield (
                f"The image cache {cache.folder} was made with interpolation={cache.settings.interpolation!r}, and "
                f"ResizeMultiView has {interpolation!r}. Set that alike, or make another cache with --cache-dir and "
                f"--cache-interpolation {interpolation}."
            )
        index = Path(data_root) / dataset["ann_file"]
        names = list(image_sizes(index))
        listings: dict[Path, set[str]] = {}
        missing = [name for name in names if not _is_there(cache.path(name), listings)]
        # Skipping is allowed to training for single images; it counts them, and stops at too many.
        if missing and (dataset.get("on_error") != "skip" or len(missing) == len(names)):
            yield (
                f"The image cache {cache.folder} lacks {len(missing)} of the {len(names)} images of {index}, the first "
                f"is {missing[0]}. Make them by {cache_command(cache_dir, data_root, (width, height))}"
            )
            return
        lacking = set(missing)
        for name in names[:: max(1, len(names) // _NUM_OPENED)]:
            if name not in lacking:
                cache.read(Path(data_root) / name)
    except DataError as error:
        yield str(error)


def _is_there(path: Path, listings: dict[Path, set[str]]) -> bool:
    """Looked up folder by folder: one listing instead of a system call per file."""
    if path.parent not in listings:
        listings[path.parent] = (
            {entry.name for entry in path.parent.iterdir()} if path.parent.is_dir() else set()
        )
    return path.name in listings[path.parent]

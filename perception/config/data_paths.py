"""Data that a config names and that is not there, each with the command that makes it."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

_LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


def missing_data(cfg: Config | Mapping[str, Any], *, loaders: Iterable[str] = _LOADERS) -> list[str]:
    """What the data loaders' roots and indexes lack, one sentence each.

    Args:
        cfg: the config.
        loaders: the loaders that are going to be used.

    Returns:
        Sentences with path and remedy; empty if everything is there.
    """
    root: Any = cfg._cfg_dict if isinstance(cfg, Config) else cfg
    problems: list[str] = []
    for loader in loaders:
        dataset = (root.get(loader) or {}).get("dataset")
        for text in _dataset_problems(dataset) if isinstance(dataset, dict) else ():
            if text not in problems:
                problems.append(text)
    return problems


def _dataset_problems(dataset: Mapping[str, Any]) -> list[str]:
    data_root, ann_file = dataset.get("data_root"), dataset.get("ann_file")
    if not isinstance(data_root, str) or not isinstance(ann_file, str):
        return []
    folder = Path(data_root)
    is_synthetic = folder.name.endswith("-synthetic")
    make = (
        f"perception data synthesize --out {data_root}"
        if is_synthetic
        else f"a link: ln -s /your/nuscenes {data_root}"
    )
    if not folder.is_dir():
        return [f"The data root {data_root} does not exist. Make it by {make}; see data/README.md."]
    if not any(path.is_dir() for path in folder.glob("v1.0-*")):
        return [
            f"The data root {data_root} holds no nuScenes: there is no folder v1.0-mini, v1.0-trainval or v1.0-test "
            f"in it. Make it by {make}; see data/README.md."
        ]
    index = folder / ann_file
    if not index.is_file():
        return [f"The index {index} does not exist. Make it by perception data prepare {data_root}"]
    return []

"""The data that a config names: what of it is not there, with the command that makes it, and another root for all."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from perception.config.errors import ConfigError
from perception.config.load import override_config
from perception.config.types import type_name

_LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
_EVALUATORS = ("val_evaluator", "test_evaluator")


def with_data_root(cfg: Config, data_root: str | Path) -> Config:
    """A copy of a config whose data sets and metrics all read from one root.

    Args:
        cfg: the config.
        data_root: the nuScenes or BDD100K root.

    Raises:
        ConfigError: the config names no data root.

    Example:
        >>> cfg = with_data_root(Config(dict(val_evaluator=[dict(data_root="a")])), "b")
        >>> cfg.val_evaluator[0].data_root
        'b'
    """
    found = [key for name in (*_LOADERS, *_EVALUATORS) for key in _data_roots(cfg._cfg_dict.get(name), name)]
    if not found:
        raise ConfigError("--data-root: no data set and no metric of this config has a data_root.")
    return override_config(cfg, [f"{key}={json.dumps(str(data_root))}" for key in found])


def fit_to_root(cfg: Config, loader: str) -> list[str]:
    """Overrides by which a loader reads the split of its own name from a root that holds another version of nuScenes.

    So the speed of a config for the full set can be measured on a small or a synthetic one.

    Args:
        cfg: the config.
        loader: key of the loader; its metrics' `version` follows.

    Returns:
        Words for `override_config`; none where the config's own index is there, or not exactly one other is.
    """
    dataset = (cfg._cfg_dict.get(loader) or {}).get("dataset") or {}
    root, own = dataset.get("data_root"), dataset.get("ann_file")
    if not isinstance(root, str) or not isinstance(own, str) or (Path(root) / own).is_file():
        return []
    split = Path(own).stem.rpartition("_")[2]  # of v1.0-mini_mini_train: train
    found = list((Path(root) / own).parent.glob(f"v1.0-*_*{split}.json"))
    if len(found) != 1:
        return []
    version = found[0].stem.partition("_")[0]
    evaluator = loader.replace("dataloader", "evaluator")
    versions = [
        f"{evaluator}.{number}.version={version}"
        for number, metric in enumerate(_metrics(cfg._cfg_dict.get(evaluator)))
        if "version" in metric
    ]
    return [f"{loader}.dataset.ann_file={Path(own).with_name(found[0].name)}", *versions]


def _data_roots(value: Any, key: str) -> Iterator[str]:
    """Dotted keys of every data_root in a part of a config."""
    if isinstance(value, dict):
        for name, inner in dict.items(value):
            if name == "data_root":
                yield f"{key}.{name}"
            else:
                yield from _data_roots(inner, f"{key}.{name}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _data_roots(inner, f"{key}.{number}")


def missing_data(cfg: Config | Mapping[str, Any], *, loaders: Iterable[str] = _LOADERS) -> list[str]:
    """What roots, indexes, vector maps, the metrics' tables and the backbone's weights lack, one sentence each.

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
        metrics = _metrics(root.get(loader.replace("dataloader", "evaluator")))
        found = _dataset_problems(dataset, metrics) if isinstance(dataset, dict) else []
        problems.extend(text for text in [*found, *_metric_problems(metrics)] if text not in problems)
    weights = (root.get("model") or {}).get("backbone_weights")
    if isinstance(weights, str) and not Path(weights).is_file():
        problems.append(
            f"The backbone's weights {weights} do not exist. Put the file there, or train from scratch with "
            "--set model.backbone_weights=null"
        )
    return problems


def _metrics(evaluator: Any) -> list[dict[str, Any]]:
    listed = evaluator if isinstance(evaluator, list) else [evaluator]
    return [metric for metric in listed if isinstance(metric, dict)]


def _metric_problems(metrics: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A metric opens its tables at the first evaluation, hours into a run; so look now."""
    for metric in metrics:
        if "version" not in metric or "data_root" not in metric:
            continue
        tables = Path(metric["data_root"]) / metric["version"]
        if Path(metric["data_root"]).is_dir() and not tables.is_dir():
            yield f"The metric's tables {tables} do not exist. Set the evaluator's data_root and version to the data's."


def _dataset_problems(dataset: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    data_root, ann_file = dataset.get("data_root"), dataset.get("ann_file")
    if not isinstance(data_root, str) or not isinstance(ann_file, str):
        return []
    is_bdd100k = _class_name(dataset) == "BDD100KDataset"
    name = "bdd100k" if is_bdd100k else "nuscenes"
    folder = Path(data_root)
    is_synthetic = folder.name.endswith("-synthetic")
    make = (
        f"perception data synthesize {'--format bdd100k ' if is_bdd100k else ''}--out {data_root}"
        if is_synthetic
        else f"a link: ln -s /your/{name} {data_root}"
    )
    if not folder.is_dir():
        return [f"The data root {data_root} does not exist. Make it by {make}; see data/README.md."]
    if is_bdd100k:
        return list(_bdd100k_problems(dataset, folder, make))
    versions = [path.name for path in folder.glob("v1.0-*") if path.is_dir()]
    if not versions:
        return [
            f"The data root {data_root} holds no nuScenes: there is no folder v1.0-mini, v1.0-trainval or v1.0-test "
            f"in it. Make it by {make}; see data/README.md."
        ]
    problems = []
    index = folder / ann_file
    version = index.name.partition("_")[0]
    others = sorted(path.name for path in index.parent.glob("*.json"))
    if not index.is_file() and version.startswith("v1.0-") and version not in versions and others:
        problems.append(
            f"The index {index} does not exist, and {data_root} has no {version} to make it from. There are "
            f"{', '.join(others)}: take one by perception test --index, or else by the data set's ann_file and the "
            "metrics' version"
        )
    elif not index.is_file():
        choice = f" --version {version}" if version in versions else ""
        problems.append(
            f"The index {index} does not exist. Make it by perception data prepare {data_root}{choice}"
        )
    return [*problems, *_map_problems(dataset, data_root, metrics)]


def _bdd100k_problems(dataset: Mapping[str, Any], folder: Path, make: str) -> Iterator[str]:
    if not (folder / "images").is_dir():
        yield f"The data root {folder} holds no BDD100K: there is no folder images in it. Make it by {make}."
        return
    index = folder / dataset["ann_file"]
    if not index.is_file():
        yield f"The index {index} does not exist. Make it by perception data prepare {folder}"
    pseudo = dataset.get("pseudo_labels") or ()
    for labels in [pseudo] if isinstance(pseudo, str) else pseudo:
        if not Path(labels).is_dir():
            yield f"The pseudo labels {labels} do not exist. Make them by perception pseudo-label, with --out {labels}"


def _map_problems(
    dataset: Mapping[str, Any], data_root: str, metrics: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    remedy = "Download 'nuScenes map expansion v1.3' from nuscenes.org and unpack it there, or"
    for step in dataset.get("pipeline") or ():
        folder = Path(step.get("map_root") or data_root) / "maps" / "expansion"
        if _class_name(step) != "LoadBEVMap" or any(folder.glob("*.json")):
            continue
        if step.get("on_missing", "error") == "error":
            yield (
                f"The map task needs the vector maps {folder}/*.json, which are not there. {remedy} train boxes alone; "
                "see docs/data.md."
            )
        elif any(_class_name(metric) == "BEVSegMetric" for metric in metrics):
            yield (
                f"BEVSegMetric has nothing to compare with, because there are no vector maps {folder}/*.json. {remedy} "
                "leave this metric out of the evaluator."
            )


def _class_name(node: Mapping[str, Any]) -> str:
    return type_name(node.get("type", "")).rpartition(".")[2]

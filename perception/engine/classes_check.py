"""The classes of a config's model, datasets and metrics, compared without reading any data."""

from collections.abc import Mapping
from inspect import signature
from typing import Any

from perception.config import ConfigError
from perception.engine.vocabulary import check_classes
from perception.registry import DATASETS, METRICS, MODELS


def check_config_classes(cfg: Mapping[str, Any]) -> None:
    """Build what a config names and compare as a run does at its start; indexes and images are not read.

    Args:
        cfg: the config. A dataset whose type can't wait with reading its index is left to the run.

    Raises:
        ConfigError: classes differ, or the model, a dataset or a metric can't be built.
    """
    part = "model"
    datasets: dict[str, Any] = {}
    metrics: dict[str, list[Any]] = {}
    try:
        model = MODELS.build(cfg["model"])
        for name in ("train", "val", "test"):
            part = f"{name}_dataloader.dataset"
            loader, evaluator = cfg.get(f"{name}_dataloader"), cfg.get(f"{name}_evaluator")
            if loader is None or not _can_wait(loader["dataset"]):
                continue
            dataset = DATASETS.build({**loader["dataset"], "lazy_init": True})
            part = f"{name}_evaluator"
            built = [METRICS.build(metric) for metric in _metrics_of(evaluator)]
            for metric in built:
                metric.dataset_meta = dataset.metainfo
            datasets[f"{name}_dataloader"], metrics[f"{name}_dataloader"] = dataset, built
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError("The config has 1 problem:", problems=[f"{part}: {error}"]) from error
    check_classes(model, datasets, metrics)


def _can_wait(dataset: Mapping[str, Any]) -> bool:
    kind = dataset["type"]
    kind = DATASETS.get(kind) if isinstance(kind, str) else kind
    return kind is not None and "lazy_init" in signature(kind).parameters


def _metrics_of(evaluator: Any) -> list[Any]:
    if isinstance(evaluator, Mapping):
        evaluator = evaluator.get("metrics", [evaluator])
    return list(evaluator or [])

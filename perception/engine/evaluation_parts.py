"""Which loader and evaluator a config means by "test"."""

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from perception.config import ConfigError
from perception.config.image_sizes import step_name
from perception.datasets import read_metainfo
from perception.engine.run_folder import to_plain
from perception.registry import METRICS
from perception.utils import write_json_atomic


def evaluation_parts(cfg: Config) -> tuple[Any, Any]:
    """The config's test loader and evaluator, or the validation's if there is no test loader.

    Raises:
        ValueError: it has neither.
    """
    for name in ("test", "val"):
        if cfg.get(f"{name}_dataloader") is not None:
            return cfg[f"{name}_dataloader"], cfg.get(f"{name}_evaluator")
    raise ValueError("the config has neither test_dataloader nor val_dataloader. Add one, with its evaluator")


def writing_evaluator(evaluator: Any, out: str | Path) -> list[dict[str, Any]]:
    """The metrics that can write predictions in their data set's submission format, set to do nothing else.

    Args:
        evaluator: config of one metric or several.
        out: folder of the files.

    Raises:
        ConfigError: there is none.
    """
    metrics = evaluator if isinstance(evaluator, list) else [evaluator]
    kinds = [metric["type"] for metric in metrics]
    classes = [METRICS.get(kind) if isinstance(kind, str) else kind for kind in kinds]
    found = [
        {**metric, "out_dir": str(out), "format_only": True}
        for metric, cls in zip(metrics, classes, strict=True)
        if "format_only" in inspect.signature(cls).parameters
    ]
    if not found:
        raise ConfigError("no metric of this config can write predictions in a submission format")
    return found


def writing_loader(loader: Mapping[str, Any]) -> dict[str, Any]:
    """A loader for predictions that are only written: without the map's ground truth, which a test split has not."""
    dataset = loader["dataset"]
    pipeline = [step for step in dataset["pipeline"] if step_name(step) != "LoadBEVMap"]
    return {**loader, "dataset": {**dataset, "pipeline": pipeline}}


def write_sample_scores(path: Path, metrics: Sequence[Any], model: str | Path | None) -> None:
    """Write what the metrics kept of each sample.

    Args:
        path: the JSON file.
        metrics: after their evaluation, with `keeps_sample_scores` where they have it.
        model: what was evaluated.
    """
    samples: dict[str, dict[str, float]] = {}
    for metric in metrics:
        for token, scores in getattr(metric, "sample_scores", {}).items():
            samples.setdefault(token, {}).update(scores)
    content = {"model": str(model), "samples": dict(sorted(samples.items()))}
    write_json_atomic(path, to_plain(content), indent=None)


def index_overrides(cfg: Config, index: str | Path) -> list[str]:
    """Words for `override_config` that set the test data to another index, and the metrics to its version and split.

    Args:
        cfg: the config.
        index: index file, e.g. of nuScenes' test split.

    Raises:
        DataError: the index cannot be read.
        ValueError: the config has neither test nor validation data.
    """
    part = "test" if cfg.get("test_dataloader") is not None else "val"
    _, evaluator = evaluation_parts(cfg)
    words = [f"{part}_dataloader.dataset.ann_file={json.dumps(str(Path(index).absolute()))}"]
    found = read_metainfo(index)
    options = {"version": found.get("version"), "eval_set": found.get("split")}
    metrics = evaluator if isinstance(evaluator, list) else [evaluator]
    for number, metric in enumerate(metrics):
        kind = METRICS.get(metric["type"]) if isinstance(metric["type"], str) else metric["type"]
        place = f"{part}_evaluator.{number}" if isinstance(evaluator, list) else f"{part}_evaluator"
        accepted = inspect.signature(kind).parameters
        words += [
            f"{place}.{key}={json.dumps(value)}"
            for key, value in options.items()
            if value and key in accepted
        ]
    return words

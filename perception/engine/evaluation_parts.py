"""Which loader and evaluator a config means by "test"."""

import inspect
from pathlib import Path
from typing import Any

from mmengine.config import Config

from perception.config import ConfigError
from perception.registry import METRICS


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

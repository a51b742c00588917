"""Which loader and evaluator a config means by "test"."""

from typing import Any

from mmengine.config import Config


def evaluation_parts(cfg: Config) -> tuple[Any, Any]:
    """The config's test loader and evaluator, or the validation's if there is no test loader.

    Raises:
        ValueError: it has neither.
    """
    for name in ("test", "val"):
        if cfg.get(f"{name}_dataloader") is not None:
            return cfg[f"{name}_dataloader"], cfg.get(f"{name}_evaluator")
    raise ValueError("the config has neither test_dataloader nor val_dataloader. Add one, with its evaluator")

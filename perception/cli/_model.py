"""The pair that a MODEL_OR_CONFIG argument stands for."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ModelChoice:
    """A config and the weights to use with it.

    Attributes:
        config: config name, path, or run folder with a ``config.json``.
        checkpoint: run folder, step folder or ``.safetensors`` file; None: no weights are named.
        run_dir: the run folder that the config came from, if it came from one.
        export: the export folder that the config came from, if it came from one.
    """

    config: str
    checkpoint: str | None
    run_dir: Path | None
    export: Path | None = None

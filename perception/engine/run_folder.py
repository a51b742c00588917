"""The JSON files of a run folder: config, environment, summary, metrics."""

import hashlib
import json
import math
import os
import platform
import resource
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perception.utils import read_json, write_json_atomic

CONFIG_FILE = "config.json"
ENV_FILE = "env.json"
LOG_FILE = "log.jsonl"
METRICS_FILE = "metrics.json"
SAMPLES_FILE = "metrics_per_sample.json"
SUMMARY_FILE = "summary.json"

# Keys that say where and how a run is started, not what it computes.
_NOT_HASHED = ("work_dir", "resume", "load_from", "experiment_name", "launcher", "log_level", "visualizer")
_HEADLINES = ("NDS", "mAP", "AP", "AP50", "mIoU", "mAcc")
_PACKAGES = (
    "torch numpy mmengine mmcv mmcv-lite mmdet mmdet3d nuscenes-devkit shapely opencv-python opencv-python-headless "
    "safetensors tensorboard deepspeed torchjd"
).split()


def to_plain(value: Any) -> Any:
    """A config or result as JSON-able values: classes by their dotted name, tensors as lists, NaN as None.

    Example:
        >>> import collections
        >>> to_plain({"type": collections.OrderedDict, "size": (1, 2)})
        {'type': 'collections.OrderedDict', 'size': [1, 2]}
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset | range):
        return [to_plain(item) for item in value]
    if isinstance(value, Tensor | np.ndarray):
        return to_plain(value.tolist())
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "__qualname__") and hasattr(value, "__module__"):
        return f"{value.__module__}.{value.__qualname__}"
    return str(value)


def hash_config(config: Mapping[str, Any]) -> str:
    """SHA-256 of what a config computes: the same for another work directory or a resumed start."""
    plain = {key: value for key, value in to_plain(config).items() if key not in _NOT_HASHED}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode("utf-8")).hexdigest()


def headline_scores(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The scores that a summary names, as far as they are there.

    Example:
        >>> headline_scores({"NDS": 0.3, "AP/car": 0.5})
        {'NDS': 0.3}
    """
    return {key: metrics[key] for key in _HEADLINES if key in metrics}


def package_versions() -> dict[str, str | None]:
    """Versions of the packages that results depend on; None where one is not installed."""
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def cpu_name() -> str:
    """The processor's name as the system tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def describe_environment() -> dict[str, Any]:
    """Versions and hardware, for `env.json`."""
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cpus": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "devices": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "packages": package_versions(),
        "world_size": int(os.environ.get("WORLD_SIZE", 1)),
    }


def peak_memory_mb() -> float:
    """Peak memory of this process in MiB: of the GPU's tensors where there is one, else resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def update_summary(run_folder: str | Path, updates: Mapping[str, Any]) -> dict[str, Any]:
    """Merge values into the run folder's `summary.json`, nested dicts key by key.

    Returns:
        The whole summary.

    Raises:
        OSError: the folder is not writable.
    """
    path = Path(run_folder) / SUMMARY_FILE
    summary = read_json(path) if path.is_file() else {}
    _merge(summary, to_plain(updates))
    write_json_atomic(path, summary)
    return summary


def _merge(target: dict[str, Any], updates: Mapping[str, Any]) -> None:
    for key, value in updates.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = value

"""What this machine and installation offer, and what will not work on it."""

import os
import platform
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from perception.engine.run_folder import package_versions

_MIN_SHARED_MEMORY = 512 * 2**20
_MIN_DISK = 2 * 2**30


def inspect_environment() -> tuple[dict[str, Any], list[str]]:
    """Facts by name, and problems each with its remedy.

    Example:
        >>> facts, problems = inspect_environment()
        >>> facts["torch"] == torch.__version__
        True
    """
    facts: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform()}
    problems: list[str] = []
    facts |= package_versions()
    facts["torch"] = torch.__version__
    _inspect_ops(facts, problems)
    _inspect_compute(facts)
    _inspect_opencv(facts, problems)
    _inspect_space(facts, problems)
    return facts, problems


def _inspect_ops(facts: dict[str, Any], problems: list[str]) -> None:
    try:
        import mmcv._ext as ext
    except ImportError as error:
        problems.append(
            f"mmcv's ops cannot be imported ({error}); set up again by `bash tools/setup_env.sh`."
        )
        return
    path = str(getattr(ext, "__file__", ""))
    facts["mmcv ops"] = "compiled" if path.endswith(".so") else "fallback in torch (perception.ops)"


def _inspect_compute(facts: dict[str, Any]) -> None:
    facts["CPU cores"] = len(os.sched_getaffinity(0))
    facts["torch threads"] = torch.get_num_threads()
    facts["CUDA"] = torch.version.cuda
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    facts["GPUs"] = [torch.cuda.get_device_name(index) for index in range(count)]
    facts["bf16"] = bool(count) and torch.cuda.is_bf16_supported(including_emulation=False)


def _inspect_opencv(facts: dict[str, Any], problems: list[str]) -> None:
    try:
        import cv2
    except ImportError as error:
        problems.append(
            f"OpenCV cannot be imported ({error}); the wheel with windows lies on top: "
            "`pip install --force-reinstall --no-deps opencv-python-headless`."
        )
        return
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    is_right = np.array_equal(cv2.imdecode(cv2.imencode(".png", image)[1], cv2.IMREAD_COLOR), image)
    facts["OpenCV"] = f"{cv2.__version__}, {'works' if is_right else 'broken'}"
    if not is_right:
        problems.append(
            "OpenCV does not read back the PNG that it wrote; install opencv-python-headless again."
        )


def _inspect_space(facts: dict[str, Any], problems: list[str]) -> None:
    disk = shutil.disk_usage(Path.cwd())
    facts["free disk here (GiB)"] = round(disk.free / 2**30, 1)
    if disk.free < _MIN_DISK:
        problems.append(f"only {disk.free / 2**30:.1f} GiB are free here; the demo needs 2.")
    memory = Path("/dev/shm")  # noqa: S108
    if memory.is_dir():
        free = shutil.disk_usage(memory).free
        facts["free shared memory (GiB)"] = round(free / 2**30, 2)
        if free < _MIN_SHARED_MEMORY:
            problems.append(
                f"only {free / 2**20:.0f} MiB of shared memory are free; loader workers pass batches through it. "
                "Enlarge /dev/shm (docker: --shm-size=2g) or set train_dataloader.num_workers=0 "
                "train_dataloader.persistent_workers=false."
            )

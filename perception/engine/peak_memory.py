"""The most memory that a stretch of a program used."""

import resource
import sys
from pathlib import Path
from typing import Any

import torch

_MIB = 2**20
_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


class PeakMemory:
    """Peak memory since `restart`, and how much more that is than when this object was made.

    On CUDA that of torch's allocator. On a CPU the resident memory of this process: its peak is set back where the
    system can do that (Linux); elsewhere it is that since the process began.

    Args:
        device: where the tensors are.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._is_reset = False
        self._before = (
            torch.cuda.memory_allocated(device) / _MIB if device.type == "cuda" else _resident_mib("VmRSS")
        )

    def restart(self) -> None:
        """Forget the peak so far."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            return
        try:
            _RESET.write_text("5", encoding="ascii")
            self._is_reset = True
        except OSError:
            self._is_reset = False

    def describe(self) -> dict[str, Any]:
        """`peak_mib`, `growth_mib` and what they are `of`."""
        if self._device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._device) / _MIB
            of = "tensors on the GPU"
        else:
            peak = _resident_mib("VmHWM")
            since = "" if self._is_reset else " since it began"
            of = f"resident memory of this process{since}, without loader workers"
        return {"peak_mib": round(peak, 1), "growth_mib": round(peak - self._before, 1), "of": of}


def _resident_mib(key: str) -> float:
    if _STATUS.is_file():
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (_MIB if sys.platform == "darwin" else 1024)

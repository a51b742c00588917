"""Starts the toy driver on several ranks."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DRIVER = Path(__file__).with_name("toy_driver.py")


def launch(jobs: list[dict[str, Any]], *, num_ranks: int = 2, limit_s: int = 150) -> None:
    """Run toy_driver.py on so many ranks and wait; a failure shows the ranks' output."""
    port = free_port()
    processes = []
    for rank in range(num_ranks):
        env = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_ranks),
               "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
               "PYTHONPATH": os.pathsep.join(sys.path), "TOY_LIMIT_S": str(limit_s)}  # fmt: skip
        command = [sys.executable, str(DRIVER), json.dumps(jobs)]
        processes.append(
            subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    outputs = []
    for process in processes:
        try:
            outputs.append(process.communicate(timeout=limit_s + 20)[0])
        except subprocess.TimeoutExpired:  # a rank that could not even keep its own limit
            for hanging in processes:
                hanging.kill()
            outputs.append(process.communicate()[0])
    codes = [process.returncode for process in processes]
    assert codes == [0] * num_ranks, f"exit codes {codes}\n" + "\n".join(output[-3000:] for output in outputs)


def free_port() -> int:
    """A port that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def needs_deepspeed(test: Any) -> Any:
    """A test that is skipped where DeepSpeed is missing."""
    is_missing = importlib.util.find_spec("deepspeed") is None
    reason = "DeepSpeed is not installed: pip install -e '.[deepspeed]'"
    return pytest.mark.skipif(is_missing, reason=reason)(test)

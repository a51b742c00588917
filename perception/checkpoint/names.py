"""File names of a checkpoint folder: one place, so that writer and reader cannot disagree."""

import re
from pathlib import Path

SCHEMA = "perception.checkpoint/1"
CHECKPOINTS_DIR = "checkpoints"
LATEST_FILE = "latest"
MANIFEST_FILE = "manifest.json"
MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.pt"
STATE_FILE = "state.json"
TEMPORARY_PREFIX = ".tmp-"

_STEP_DIR = re.compile(r"step_(\d{8,})(\.old-[0-9a-f]+)?")
_RNG_FILE = re.compile(r"rng_rank(\d+)\.pt")
_STREAMS_FILE = re.compile(r"streams_rank(\d+)\.pt")
# Suffixes under which other frameworks store pickles.
PICKLE_SUFFIXES = frozenset(
    {".pth", ".pt", ".pkl", ".pickle", ".ckpt", ".bin", ".tar", ".metadata", ".distcp"}
)


def step_dir_name(step: int) -> str:
    """`step_00001200` for step 1200."""
    return f"step_{step:08d}"


def rng_file_name(rank: int) -> str:
    """`rng_rank0.pt` for rank 0."""
    return f"rng_rank{rank}.pt"


def rank_of_rng_file(name: str) -> int | None:
    """Rank of an `rng_rank*.pt` file name, None for any other name."""
    match = _RNG_FILE.fullmatch(name)
    return int(match.group(1)) if match else None


def streams_file_name(rank: int) -> str:
    """`streams_rank0.pt` for rank 0."""
    return f"streams_rank{rank}.pt"


def rank_of_streams_file(name: str) -> int | None:
    """Rank of a `streams_rank*.pt` file name, None for any other name."""
    match = _STREAMS_FILE.fullmatch(name)
    return int(match.group(1)) if match else None


def step_of_dir(path: Path) -> int | None:
    """Step of a step folder's name, None if it is not one. A copy set aside during a save counts too."""
    match = _STEP_DIR.fullmatch(path.name)
    return int(match.group(1)) if match else None


def is_set_aside(path: Path) -> bool:
    """Whether this is a copy that an interrupted save of the same step had set aside."""
    match = _STEP_DIR.fullmatch(path.name)
    return bool(match and match.group(2))

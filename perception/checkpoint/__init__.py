"""Write, verify, find and read checkpoints: atomic, hashed, free of anything that could run."""

from perception.checkpoint.errors import CheckpointError
from perception.checkpoint.names import CHECKPOINTS_DIR
from perception.checkpoint.reader import (
    Checkpoint,
    Weights,
    check_path,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_weights,
    verify_checkpoint,
)
from perception.checkpoint.writer import save_checkpoint

__all__ = [
    "CHECKPOINTS_DIR",
    "Checkpoint",
    "CheckpointError",
    "Weights",
    "check_path",
    "find_checkpoint",
    "list_checkpoints",
    "load_checkpoint",
    "load_weights",
    "save_checkpoint",
    "verify_checkpoint",
]

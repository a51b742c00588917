"""Write, verify, find and read checkpoints: atomic, hashed, free of anything that could run."""

from perception.checkpoint.errors import CheckpointError
from perception.checkpoint.names import CHECKPOINTS_DIR
from perception.checkpoint.reader import (
    Checkpoint,
    find_checkpoint,
    load_checkpoint,
    load_model_weights,
    load_state,
    verify_checkpoint,
)
from perception.checkpoint.writer import save_checkpoint

__all__ = [
    "CHECKPOINTS_DIR",
    "Checkpoint",
    "CheckpointError",
    "find_checkpoint",
    "load_checkpoint",
    "load_model_weights",
    "load_state",
    "save_checkpoint",
    "verify_checkpoint",
]

"""Safe files, stable seeds, loggers, nearest names and errors; imports nothing of MMEngine's family."""

from perception.utils.errors import DataError, FileError
from perception.utils.io import (
    fsync_dir,
    iter_json_lines,
    read_json,
    sha256_file,
    write_bytes_atomic,
    write_json_atomic,
)
from perception.utils.log import get_logger
from perception.utils.memory import keep_freed_memory
from perception.utils.progress import Progress, show_progress
from perception.utils.seed import stable_seed
from perception.utils.suggest import closest, did_you_mean, edit_distance
from perception.utils.text import name_some

__all__ = [
    "DataError",
    "FileError",
    "Progress",
    "closest",
    "did_you_mean",
    "edit_distance",
    "fsync_dir",
    "get_logger",
    "iter_json_lines",
    "keep_freed_memory",
    "name_some",
    "read_json",
    "sha256_file",
    "show_progress",
    "stable_seed",
    "write_bytes_atomic",
    "write_json_atomic",
]

"""Safe files, stable seeds, loggers and the data error; imports nothing of MMEngine's family."""

from perception.utils.errors import DataError
from perception.utils.io import fsync_dir, read_json, sha256_file, write_bytes_atomic, write_json_atomic
from perception.utils.log import get_logger
from perception.utils.seed import stable_seed

__all__ = [
    "DataError",
    "fsync_dir",
    "get_logger",
    "read_json",
    "sha256_file",
    "stable_seed",
    "write_bytes_atomic",
    "write_json_atomic",
]

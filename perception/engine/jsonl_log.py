"""`log.jsonl`: one JSON object per line, one line per training step, evaluation or event.

A line has a `kind`:

- `train`: step, epoch, lr, loss, losses {term: value on this rank}, tasks {task: global loss}, grad_norm, skipped,
  balance {what the balancing method did}, data_time (s), step_time (s), memory_mb; in fp16 loss_scale; and where a
  step was skipped, its reason: `non_finite` {kind, tasks, parameters, sample_tokens, in_row}, or `overflow`
  {loss_scale, next_loss_scale};
- `val`: step, seconds, metrics {...};
- `event`: event ("start", "resume", "checkpoint", "signal"), step, and details.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from perception.engine.run_folder import LOG_FILE, to_plain
from perception.engine.work_dir import WorkDirError
from perception.utils import iter_json_lines, write_bytes_atomic


class JsonlLog:
    """Appends lines; on resume takes back those that a later checkpoint would have explained.

    Args:
        run_folder: where `log.jsonl` lies.
    """

    def __init__(self, run_folder: str | Path) -> None:
        self.path = Path(run_folder) / LOG_FILE
        self._file: Any = None

    def rewind(self, *, step: int) -> None:
        """Drop the lines of steps after `step`: the resumed run will write them again."""
        self.close()
        kept = (line for line in iter_log(self.path) if line.get("step", 0) <= step)
        write_bytes_atomic(self.path, ((json.dumps(line) + "\n").encode("utf-8") for line in kept))

    def write(self, line: dict[str, Any]) -> None:
        """Append one line and hand it to the operating system.

        Raises:
            WorkDirError: the disk is full.
        """
        if self._file is None:
            self._file = open(self.path, "ab", buffering=0)
        try:
            self._file.write((json.dumps(to_plain(line)) + "\n").encode("utf-8"))
        except OSError as error:
            free = shutil.disk_usage(self.path.parent).free / 2**20
            raise WorkDirError(
                f"the log cannot be written ({error.strerror}); free space there: {free:.0f} MiB. Free some, then "
                "continue with --resume",
                path=self.path,
            ) from error

    def sync(self) -> None:
        """Force what was written to the disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def iter_log(path: str | Path) -> Iterator[dict[str, Any]]:
    """Lines of a `log.jsonl`, one at a time: on the full data set a run's are gigabytes as Python objects.

    None if there is no such file; a half-written last line is left out.

    Raises:
        ValueError: a line other than the last is not a JSON object.
    """
    if Path(path).is_file():
        yield from iter_json_lines(path)


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """All lines of a `log.jsonl`, as `iter_log`."""
    return list(iter_log(path))


def last_evaluation(path: str | Path, *, step: int) -> dict[str, Any] | None:
    """The last `val` line of a log at a step, None if that step was not evaluated."""
    found = None
    for line in iter_log(path):
        if line["kind"] == "val" and line["step"] == step:
            found = line
    return found

"""Files that are old or new but never half; seeds and errors that survive a trip between processes."""

import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from perception.checkpoint import CheckpointError
from perception.utils import (
    DataError,
    iter_json_lines,
    read_json,
    sha256_file,
    stable_seed,
    write_bytes_atomic,
    write_json_atomic,
)


def test_json_round_trip_and_refusal(tmp_path: Path) -> None:
    path = tmp_path / "ü.json"
    write_json_atomic(path, {"ä": [1, None]})
    assert read_json(path) == {"ä": [1, None]}
    with pytest.raises(ValueError, match="Out of range float"):
        write_json_atomic(path, {"x": float("nan")})
    assert read_json(path) == {"ä": [1, None]}


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_bytes_atomic(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            write_bytes_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256_file(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()


def test_seed_is_the_same_in_every_process() -> None:
    code = "from perception.utils import stable_seed; print(stable_seed(3, 'order', 7))"
    env = {**os.environ, "PYTHONHASHSEED": "123", "PYTHONPATH": os.pathsep.join(sys.path)}
    out = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    ).stdout
    assert int(out) == stable_seed(3, "order", 7)
    assert len({stable_seed(a, b) for a in range(30) for b in range(30)}) == 900
    assert 0 <= stable_seed(1) < 2**63


@pytest.mark.parametrize(
    "error", [DataError("what", sample_token="s", path="p"), CheckpointError("what", path="p")]
)
def test_errors_survive_pickling(error: Exception) -> None:
    """Loader workers send their errors to the main process this way."""
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 (our own bytes)
    assert (type(copy), str(copy)) == (type(error), str(error))
    assert copy.path == "p"


def test_a_log_cut_short_is_read_and_a_damaged_one_refused(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1, "loss": 1.0}\n\n{"step": 2, "lo')
    assert list(iter_json_lines(log)) == [{"step": 1, "loss": 1.0}]
    log.write_text('{"step": 1\n{"step": 2}\n')
    with pytest.raises(ValueError, match="line 1 is not JSON"):
        list(iter_json_lines(log))
    log.write_text("[1]\n")
    with pytest.raises(ValueError, match="not a JSON object but list"):
        list(iter_json_lines(log))

"""The manifest: what belongs to a checkpoint, how large it is, and its SHA-256, including its own.

The file's bytes are the canonical dump of its content, so that any change of any byte of it is noticed.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from perception.checkpoint.errors import CheckpointError
from perception.checkpoint.names import MANIFEST_FILE, SCHEMA
from perception.utils import sha256_file

_OWN_HASH = "manifest_sha256"


def dump_manifest(content: dict[str, Any]) -> bytes:
    """Canonical bytes of a manifest, its own hash added."""
    sealed = {**content, _OWN_HASH: hashlib.sha256(_canonical(content)).hexdigest()}
    return _canonical(sealed)


def read_manifest(step_dir: Path) -> dict[str, Any]:
    """Read and check a manifest, not yet the files that it lists.

    Raises:
        CheckpointError: it is missing, damaged or of another schema.
    """
    path = step_dir / MANIFEST_FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(
            f"the checkpoint has no {MANIFEST_FILE}: it is incomplete or not one of ours. Use another "
            "checkpoint",
            path=step_dir,
        ) from None
    except OSError as error:
        raise CheckpointError(f"the manifest cannot be read ({error})", path=path) from error
    found = hashlib.sha256(data).hexdigest()
    try:
        sealed = json.loads(data.decode("utf-8"))
        expected = sealed.pop(_OWN_HASH)
        files = {
            str(name): (str(entry["sha256"]), int(entry["size"])) for name, entry in sealed["files"].items()
        }
        is_intact = (
            hashlib.sha256(_canonical(sealed)).hexdigest() == expected and dump_manifest(sealed) == data
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"the manifest is damaged ({type(error).__name__}: {error}; actual sha256 {found}). "
            "Use another checkpoint",
            path=path,
        ) from error
    if not is_intact:
        raise CheckpointError(
            f"the manifest is damaged: expected sha256 {expected} of its content, actual {found} of the file. "
            "Use another checkpoint",
            path=path,
        )
    if sealed.get("schema") != SCHEMA:
        raise CheckpointError(
            f"the checkpoint has schema {sealed.get('schema')!r}, this version reads {SCHEMA!r}. "
            "Use the version of perception that wrote it",
            path=path,
        )
    if any(Path(name).name != name for name in files):
        raise CheckpointError("the manifest names files outside its folder", path=path)
    return sealed


def verify_files(step_dir: Path, manifest: dict[str, Any]) -> None:
    """Compare each listed file's size and SHA-256 with the disk.

    Raises:
        CheckpointError: a file is missing, truncated or changed; the message has both hashes.
    """
    for name, entry in manifest["files"].items():
        path = step_dir / name
        if not path.is_file():
            raise CheckpointError(
                f"the checkpoint's file {name} is missing (expected sha256 {entry['sha256']}, actual none). "
                "Use another checkpoint",
                path=path,
            )
        try:
            size, actual = path.stat().st_size, sha256_file(path)
        except OSError as error:
            raise CheckpointError(
                f"the checkpoint's file {name} cannot be read ({error})", path=path
            ) from error
        if (size, actual) != (entry["size"], entry["sha256"]):
            raise CheckpointError(
                f"the checkpoint's file {name} is damaged: expected sha256 {entry['sha256']} ({entry['size']} bytes), "
                f"actual {actual} ({size} bytes). Use another checkpoint",
                path=path,
            )


def _canonical(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, sort_keys=True, indent=1, allow_nan=False) + "\n").encode("utf-8")

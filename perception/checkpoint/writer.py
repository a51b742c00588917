"""Publish a checkpoint so that a crash at any instant leaves the old one or the new one, whole.

Order: temporary folder beside → each file written and fsynced → manifest → rename into place → read back and
verified → `latest` renamed into place → only then the old ones pruned.
"""

import hashlib
import io
import json
import os
import shutil
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as dump_safetensors
from torch import Tensor

from perception.checkpoint import names
from perception.checkpoint.errors import CheckpointError
from perception.checkpoint.manifest import dump_manifest, read_manifest, verify_files
from perception.checkpoint.plain import check_plain, detach_model_state, first_non_finite
from perception.utils import fsync_dir, get_logger, write_bytes_atomic

logger = get_logger("checkpoint")


def save_checkpoint(
    checkpoints_dir: str | Path,
    *,
    step: int,
    model_state: Mapping[str, Tensor],
    optimizer_state: Mapping[str, Any],
    state: Mapping[str, Any],
    rng_states: Mapping[int, Mapping[str, Any]],
    stream_states: Mapping[int, Mapping[str, Any]] | None = None,
    max_keep: int = 2,
) -> Path:
    """Write `checkpoints_dir/step_<step>` atomically, verify it by reading it back, prune the old ones.

    Args:
        checkpoints_dir: the run folder's `checkpoints`; made if absent.
        step: number of finished training steps.
        model_state: the model's `state_dict()`.
        optimizer_state: nested dicts and lists of tensors and JSON-able values.
        state: JSON-able values; `config_hash` and `world_size` are copied into the manifest.
        rng_states: rank → generator states, as `optimizer_state`.
        stream_states: rank → what its streams carry, as `optimizer_state`; None or empty: the run has no streams.
        max_keep: how many checkpoints stay, the new one included.

    Returns:
        The published step folder.

    Raises:
        CheckpointError: a value is not finite or not plain, or the disk refuses (full, read-only). Nothing appears
            under the final name then, and earlier checkpoints are untouched.
        ValueError: `max_keep` < 1.
    """
    if max_keep < 1:
        raise ValueError(f"max_keep is {max_keep}; allowed: 1 or more, since the newest checkpoint must stay")
    root = Path(checkpoints_dir)
    final = root / names.step_dir_name(step)
    files = _serialise(final, model_state, optimizer_state, state, rng_states, stream_states or {})
    temporary = root / f"{names.TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(root)
        temporary.mkdir()
        entries = {name: _write(temporary / name, data) for name, data in files.items()}
        content = {
            "schema": names.SCHEMA,
            "step": step,
            "world_size": len(rng_states),
            "config_hash": state.get("config_hash"),
            "saved_at": time.time(),
            "files": entries,
        }
        _write(temporary / names.MANIFEST_FILE, dump_manifest(content))
        fsync_dir(temporary)
        _publish(temporary, final)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"the checkpoint of step {step} could not be written: {error}. {_free_space(root)} "
            "Earlier checkpoints are untouched; free some space, then continue with --resume",
            path=final,
        ) from error
    manifest = read_manifest(final)
    verify_files(final, manifest)
    try:
        write_bytes_atomic(root / names.LATEST_FILE, f"{final.name}\n".encode())
    except OSError as error:
        raise CheckpointError(
            f"the pointer to the new checkpoint {final.name} could not be written: {error}. "
            f"{_free_space(root)}",
            path=root / names.LATEST_FILE,
        ) from error
    _prune(root, keep=final, max_keep=max_keep)
    return final


def _serialise(
    final: Path,
    model_state: Mapping[str, Tensor],
    optimizer_state: Mapping[str, Any],
    state: Mapping[str, Any],
    rng_states: Mapping[int, Mapping[str, Any]],
    stream_states: Mapping[int, Mapping[str, Any]],
) -> dict[str, bytes]:
    path = str(final)
    tensors = detach_model_state(model_state, path=path)
    for name, content in (
        ("model", tensors),
        ("optimizer", optimizer_state),
        ("state", state),
        ("streams", stream_states),
    ):
        found = first_non_finite(content, name=name)
        if found is not None:
            raise CheckpointError(
                f"{found} holds NaN or infinity; a checkpoint with non-finite values is never published",
                path=path,
            )
    check_plain(optimizer_state, name="optimizer", path=path)
    check_plain(rng_states, name="rng", path=path)
    check_plain(stream_states, name="streams", path=path)
    try:
        state_bytes = (json.dumps(dict(state), indent=1, sort_keys=True, allow_nan=False) + "\n").encode(
            "utf-8"
        )
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"state is not JSON-able: {error}", path=path) from error
    return {
        names.MODEL_FILE: dump_safetensors(tensors),
        names.OPTIMIZER_FILE: _dump_torch(optimizer_state),
        names.STATE_FILE: state_bytes,
        **{names.rng_file_name(rank): _dump_torch(rng) for rank, rng in rng_states.items()},
        **{names.streams_file_name(rank): _dump_torch(part) for rank, part in stream_states.items()},
    }


def _dump_torch(content: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    return buffer.getvalue()


def _write(path: Path, data: bytes) -> dict[str, Any]:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


def _publish(temporary: Path, final: Path) -> None:
    # A folder can't be renamed onto a non-empty one, so a checkpoint of the same step (left by a run that went back) is
    # set aside under a name that the reader still recognises.
    aside: Path | None = None
    if final.exists():
        aside = final.with_name(f"{final.name}.old-{uuid.uuid4().hex}")
        os.replace(final, aside)
    os.replace(temporary, final)
    fsync_dir(final.parent)
    if aside is not None:
        shutil.rmtree(aside, ignore_errors=True)


def _remove_leftovers(root: Path) -> None:
    for path in root.glob(f"{names.TEMPORARY_PREFIX}*"):
        logger.info("removing %s, left by an interrupted save", path)
        shutil.rmtree(path, ignore_errors=True)
    for path in root.glob(f".{names.LATEST_FILE}.tmp-*"):
        path.unlink(missing_ok=True)


def _prune(root: Path, *, keep: Path, max_keep: int) -> None:
    # By time of saving, not by step: after a fall-back the newest may have a lower step than a damaged one.
    others = [path for path in root.iterdir() if names.step_of_dir(path) is not None and path != keep]
    others.sort(key=_saved_at, reverse=True)
    for path in others[max_keep - 1 :]:
        # Renamed first: a crash amid the removal must not leave half a checkpoint under a valid name.
        doomed = root / f"{names.TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        try:
            os.replace(path, doomed)
            shutil.rmtree(doomed)
        except OSError as error:
            logger.warning("the old checkpoint %s could not be removed: %s", path, error)


def _saved_at(step_dir: Path) -> tuple[float, int]:
    try:
        saved_at = float(read_manifest(step_dir)["saved_at"])
    except CheckpointError:
        saved_at = 0.0
    return saved_at, names.step_of_dir(step_dir) or 0


def _free_space(root: Path) -> str:
    folder = root
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return f"Free space there: {shutil.disk_usage(folder).free / 2**20:.0f} MiB."

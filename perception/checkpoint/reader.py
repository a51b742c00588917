"""Find, verify and load checkpoints. Nothing read here can run code; every byte is hashed before it is used."""

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from torch import Tensor

from perception.checkpoint import names
from perception.checkpoint.errors import CheckpointError
from perception.checkpoint.manifest import read_manifest, verify_files
from perception.utils import get_logger

logger = get_logger("checkpoint")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A loaded checkpoint, verified.

    Attributes:
        path: its step folder.
        step: number of finished training steps.
        model_state: name → CPU tensor.
        optimizer_state: as it was saved.
        state: sampler position, schedule, class list, task list and so on.
        rng_states: rank → generator states.
        stream_states: rank → what its streams carry; empty for a run without streams.
    """

    path: Path
    step: int
    model_state: dict[str, Tensor]
    optimizer_state: dict[str, Any]
    state: dict[str, Any]
    rng_states: dict[int, dict[str, Any]]
    stream_states: dict[int, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A model's weights, verified.

    Attributes:
        path: step folder or `.safetensors` file.
        model_state: name → CPU tensor.
        state: as of `Checkpoint`; empty for a bare file.
    """

    path: Path
    model_state: dict[str, Tensor]
    state: dict[str, Any]


def verify_checkpoint(step_dir: str | Path) -> dict[str, Any]:
    """Check a step folder's manifest and every file's size and SHA-256; return the manifest.

    Raises:
        CheckpointError: names the file, the expected and the actual hash.
    """
    step_dir = Path(step_dir)
    manifest = read_manifest(step_dir)
    missing = {names.MODEL_FILE, names.OPTIMIZER_FILE, names.STATE_FILE} - set(manifest["files"])
    if missing:
        raise CheckpointError(
            f"the manifest does not list {sorted(missing)}. Use another checkpoint", path=step_dir
        )
    verify_files(step_dir, manifest)
    return manifest


def check_path(path: str | Path) -> Path:
    """Refuse what no checkpoint can be at, before time is spent on anything else; no file is read.

    Raises:
        CheckpointError: there is nothing there, or a file of another kind.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(
            "there is no such checkpoint. Give a step folder, a run folder or a .safetensors file", path=path
        )
    if path.is_file():
        _refuse_other_files(path)
    return path


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint that a path means: a step folder, a run folder's latest valid one, or a safetensors file.

    In a run folder a damaged checkpoint is passed over with a warning that names the file and both hashes, and the one
    before it is taken.

    Raises:
        CheckpointError: there is nothing there, or nothing valid, or it is a pickle.
    """
    path = check_path(path)
    if path.is_file():
        return path
    if (path / names.MANIFEST_FILE).is_file() or names.step_of_dir(path) is not None:
        verify_checkpoint(path)
        return path
    root = path / names.CHECKPOINTS_DIR if (path / names.CHECKPOINTS_DIR).is_dir() else path
    candidates = list_checkpoints(root)
    for candidate in candidates:
        try:
            verify_checkpoint(candidate)
        except CheckpointError as error:
            logger.warning(
                "checkpoint %s is passed over: %s; falling back to the one before", candidate.name, error
            )
            continue
        return candidate
    found = f"{len(candidates)} checkpoints, all damaged" if candidates else "no checkpoint"
    raise CheckpointError(f"the folder holds {found}. Train first, or name another run folder", path=path)


def list_checkpoints(root: Path) -> list[Path]:
    """Step folders of a `checkpoints` folder in the order in which they are tried.

    First what `latest` points at, then by step, newest first; a copy set aside by an interrupted save comes last among
    those of its step.
    """
    steps = [entry for entry in root.iterdir() if entry.is_dir() and names.step_of_dir(entry) is not None]
    steps.sort(key=lambda entry: (names.step_of_dir(entry), not names.is_set_aside(entry)), reverse=True)
    try:
        pointed = root / (root / names.LATEST_FILE).read_text(encoding="utf-8").strip()
    except (FileNotFoundError, UnicodeDecodeError):
        return steps
    # A save that was killed between rename and pointer has left a newer, whole checkpoint: by time it wins.
    newer = [entry for entry in steps if _is_newer(entry, pointed)]
    first = newer + ([pointed] if pointed in steps and pointed not in newer else [])
    return first + [entry for entry in steps if entry not in first]


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Load everything for a resume from a step folder or a run folder.

    Raises:
        CheckpointError: as `find_checkpoint`; or the files hold anything but tensors and plain values.
    """
    step_dir = find_checkpoint(path)
    if step_dir.is_file():
        raise CheckpointError(
            "a .safetensors file holds weights only and cannot be resumed from. Use it as load_from, or give a step "
            "folder or run folder",
            path=step_dir,
        )
    manifest = read_manifest(step_dir)
    files = manifest["files"]
    ranks = {rank: name for name in files if (rank := names.rank_of_rng_file(name)) is not None}
    streams = {rank: name for name in files if (rank := names.rank_of_streams_file(name)) is not None}
    return Checkpoint(
        path=step_dir,
        step=int(manifest["step"]),
        model_state=_load_safetensors(step_dir / names.MODEL_FILE),
        optimizer_state=_load_torch(step_dir / names.OPTIMIZER_FILE),
        state=_load_state(step_dir),
        rng_states={rank: _load_torch(step_dir / name) for rank, name in ranks.items()},
        stream_states={rank: _load_torch(step_dir / name) for rank, name in streams.items()},
    )


def load_weights(path: str | Path) -> Weights:
    """Weights and the state beside them from a step folder, a run folder or a `.safetensors` file; hashed once.

    Raises:
        CheckpointError: as `find_checkpoint`; or a file does not load.
    """
    found = find_checkpoint(path)
    if found.is_file():
        return Weights(path=found, model_state=_load_safetensors(found), state={})
    return Weights(
        path=found, model_state=_load_safetensors(found / names.MODEL_FILE), state=_load_state(found)
    )


def _refuse_other_files(path: Path) -> None:
    if path.suffix == ".safetensors":
        return
    if path.suffix in names.PICKLE_SUFFIXES or path.name in names.PICKLE_SUFFIXES:
        raise CheckpointError(
            f"{path.name} is refused: {path.suffix or path.name} files are pickles, which can run code when they are "
            "loaded, and there is no switch that loads them. Convert it to .safetensors where you trust it; official "
            "BEVFormer checkpoints `perception convert-checkpoint` converts without running anything",
            path=path,
        )
    raise CheckpointError(
        f"{path.name} is not a checkpoint. Allowed: a step folder, a run folder or a .safetensors file",
        path=path,
    )


def _is_newer(entry: Path, pointed: Path) -> bool:
    try:
        return entry != pointed and read_manifest(entry)["saved_at"] > read_manifest(pointed)["saved_at"]
    except CheckpointError:
        # A damaged pair cannot be ordered by time; the higher step goes first, so that its damage is reported.
        return (names.step_of_dir(entry) or 0) > (names.step_of_dir(pointed) or 0)


def _guarded(path: Path, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except (SafetensorError, OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path.name} does not load ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''}). "
            "Use another checkpoint",
            path=path,
        ) from error


def _load_state(step_dir: Path) -> dict[str, Any]:
    path = step_dir / names.STATE_FILE
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"the state is not JSON ({error})", path=path) from error


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    return _guarded(path, lambda: parse_safetensors(path.read_bytes()))


def _load_torch(path: Path) -> dict[str, Any]:
    try:
        return _guarded(path, lambda: torch.load(path, map_location="cpu", weights_only=True))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path.name} is refused: it holds more than tensors and plain values, so it could run code. "
            "Use another checkpoint",
            path=path,
        ) from error

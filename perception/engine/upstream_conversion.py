"""Official checkpoints to ours and back: names, shapes and classes compared with a config's model, then written."""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from safetensors.torch import save as dump_safetensors
from torch import Tensor

from perception import __version__
from perception.checkpoint import CheckpointError, load_weights
from perception.checkpoint.names import MODEL_FILE
from perception.checkpoint.plain import detach_model_state
from perception.checkpoint.upstream import convert_state, official_to_ours, ours_to_official, restore_state
from perception.checkpoint.upstream_file import read_upstream, write_upstream
from perception.config import ConfigError
from perception.engine.vocabulary import describe_difference
from perception.models.upstream_compat import UpstreamCompat
from perception.registry import MODELS
from perception.structures import CLASS_NAMES
from perception.utils import name_some, sha256_file, write_bytes_atomic

OURS_FILE = "model.safetensors"
OFFICIAL_FILE = "model.pth"
CONVENTION = "(l, w, yaw)"
OFFICIAL_CONVENTION = "(w, l, -yaw - pi/2)"

_UNUSED_WITHOUT_BOXES = ("code_weights", "query_embedding.", "transformer.reference_points.")
"""What upstream's head keeps even where it has no box decoder."""
_TRAINING_ONLY = ("center_heatmap.", "perspective_head.")
_COUNTER = ".num_batches_tracked"
_TRAINED_WITH: dict[str, Any] = {"rotate_center": (100, 100), "aliased_shift": True}
_TRAINED_WITH_MAP: dict[str, Any] = {**_TRAINED_WITH, "map_divisors": (50.86, 50.86)}
_MAP_HEAD = ("seg_head.", "pts_bbox_head.seg_decoder.")
_FEW = 20


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What was done.

    Attributes:
        source: file that was read, and its hash.
        sha256: hash of the source.
        out: file that was written.
        num_tensors: tensors written.
        num_values: numbers in them.
        changed: tensors whose rows were reordered.
        left_out: tensors of the source that the other side does not use.
        filled: batch counters that the source lacked, written as 0.
        notes: what else the reader must know, a line each.
    """

    source: str
    sha256: str
    out: str
    num_tensors: int
    num_values: int
    changed: tuple[str, ...]
    left_out: tuple[str, ...]
    filled: tuple[str, ...]
    notes: tuple[str, ...]


def convert_from_upstream(cfg: Config, source: str | Path, out: str | Path) -> Conversion:
    """Write `out/model.safetensors`, which every checkpoint argument takes, from an official checkpoint.

    Args:
        cfg: config whose model the weights are for.
        source: official `.pth` or `.safetensors` file.
        out: folder.

    Raises:
        CheckpointError: the source is refused, damaged or does not fit the model, or the target exists.
        ConfigError: the config's model can't hold official weights.
    """
    expected = _expected_shapes(cfg)
    target = _new_file(out, OURS_FILE)
    file = read_upstream(source)
    path = str(source)
    left_out = [] if any(name.startswith("box_head.") for name in expected) else _unused(file.tensors)
    kept = {name: value for name, value in file.tensors.items() if name not in left_out}
    own_names = {official_to_ours(name) for name in kept}
    filled = [name for name in expected if name.endswith(_COUNTER) and name not in own_names]
    _check_fit(
        {_official_spelling(name): tuple(value.shape) for name, value in kept.items()},
        {ours_to_official(name) or name: shape for name, shape in expected.items() if name not in filled},
        path=path,
    )
    rows, class_note = _class_rows(file.meta.get("CLASSES"), _class_names(cfg), path=path)
    state = convert_state(kept, class_rows=rows, path=path) | {name: torch.tensor(0) for name in filled}
    told = {"format": "pt", "source_sha256": file.sha256, "perception": __version__, "boxes": CONVENTION}
    data = dump_safetensors(detach_model_state(state, path=path), metadata=told)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_bytes_atomic(target, data)
    notes = [f"state dict taken from {file.taken_from!r}"] if file.taken_from else []
    notes += [f"not read: {', '.join(file.ignored)}"] if file.ignored else []
    notes += [
        class_note,
        *_missing_switches(cfg, has_map=any(name.startswith("seg_head.") for name in state)),
    ]
    return _describe(path, file.sha256, target, state, left_out, filled, notes, rows is not None)


def convert_to_upstream(cfg: Config, source: str | Path, out: str | Path) -> Conversion:
    """Write `out/model.pth`, which the official code loads, from a checkpoint of ours.

    Args:
        cfg: config that the checkpoint was trained with.
        source: run folder, step folder or `.safetensors` file.
        out: folder.

    Raises:
        CheckpointError: the source is damaged or does not fit the model, upstream has no such tensors, or the target
            exists.
        ConfigError: upstream can't express the config's model.
    """
    expected = _expected_shapes(cfg)
    target = _new_file(out, OFFICIAL_FILE)
    weights = load_weights(source)
    found, state = weights.path, weights.model_state
    _check_fit(_shapes(state), expected, path=str(found))
    left_out = [name for name in state if name.startswith(_TRAINING_ONLY)]
    state = {name: value for name, value in state.items() if name not in left_out}
    classes = [str(name) for name in weights.state.get("class_names") or _class_names(cfg)]
    rows = None
    if classes != list(CLASS_NAMES) and sorted(classes) == sorted(CLASS_NAMES):
        rows, classes = [classes.index(name) for name in CLASS_NAMES], list(CLASS_NAMES)
    sha256 = sha256_file(found if found.is_file() else found / MODEL_FILE)
    official = restore_state(state, class_rows=rows, path=str(found))
    target.parent.mkdir(parents=True, exist_ok=True)
    write_upstream(target, official, {"CLASSES": classes, "source_sha256": sha256, "perception": __version__})
    notes = [f"classes: {', '.join(classes)}"]
    compat = UpstreamCompat.read(cfg.model.get("upstream_compat"))
    if compat.rotate_center is None:
        notes.append(
            "the official config needs rotate_center=[bev_w/2, bev_h/2] in its transformer: history turned about the "
            "vehicle while these weights were trained"
        )
    if not compat.aliased_shift:
        notes.append("the official code must be of 2023-07-27 or later (its shift_ref_2d is a clone)")
    return _describe(str(found), sha256, target, state, left_out, [], notes, rows is not None)


def _describe(
    source: str,
    sha256: str,
    target: Path,
    state: Mapping[str, Tensor],
    left_out: Sequence[str],
    filled: Sequence[str],
    notes: Sequence[str],
    has_new_classes: bool,
) -> Conversion:
    parts = ("box_head.reg_branches.", *(("box_head.cls_branches.",) if has_new_classes else ()))
    ends = (".4.weight", ".4.bias", ".6.weight", ".6.bias")
    return Conversion(
        source=source,
        sha256=sha256,
        out=str(target),
        num_tensors=len(state),
        num_values=sum(value.numel() for value in state.values()),
        changed=tuple(
            name
            for name in state
            if (name.startswith(parts) and name.endswith(ends)) or name == "box_head.code_weights"
        ),
        left_out=tuple(left_out),
        filled=tuple(filled),
        notes=tuple(notes),
    )


def _expected_shapes(cfg: Config) -> dict[str, tuple[int, ...]]:
    head = cfg.model.get("box_head") or {}
    scale = head.get("code_scale")
    if scale is not None and any(factor != 1 for factor in scale):
        raise ConfigError(
            f"model.box_head.code_scale is {list(scale)}; upstream's branches have no such factor, so the weights "
            "would mean something else. Only models with 1 everywhere can be converted"
        )
    with torch.device("meta"):
        return _shapes(MODELS.build(cfg.model).state_dict())


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def _new_file(folder: str | Path, name: str) -> Path:
    target = Path(folder) / name
    if target.exists():
        raise CheckpointError(f"{name} exists already. Name another --out, or remove it", path=target)
    return target


def _unused(names: Mapping[str, Any]) -> list[str]:
    prefixes = tuple(f"pts_bbox_head.{name}" for name in _UNUSED_WITHOUT_BOXES)
    return [name for name in names if name.removeprefix("module.").startswith(prefixes)]


def _check_fit(
    found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], *, path: str
) -> None:
    """Every name and shape of a file, in the file's names, against the model's."""
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected]
    reshaped = [
        f"{name} {list(found[name])} (the config's: {list(expected[name])})"
        for name in found
        if name in expected and found[name] != expected[name]
    ]
    parts = (("missing", missing), ("unknown", unknown), ("of another shape", reshaped))
    problems = [f"{len(names)} {what}: {name_some(names)}" for what, names in parts if names]
    if problems:
        raise CheckpointError(
            f"the weights do not fit the config's model; {'; '.join(problems)}.{_hint(missing, unknown)} Use the "
            "config of the same model, see `perception config ls`",
            path=path,
        )


def _hint(missing: Sequence[str], unknown: Sequence[str]) -> str:
    if missing and not unknown and all(name.startswith(_MAP_HEAD) for name in missing):
        return " The checkpoint has no map head, the config has one: add --set model.seg_head=null."
    if unknown and not missing and all(name.startswith(_MAP_HEAD) for name in unknown):
        return " The checkpoint has a map head, the config has none."
    if unknown and 0 < len(missing) <= _FEW:  # more are another model, not a misspelling
        near = difflib.get_close_matches(unknown[0], missing, n=1)
        return f" Is {unknown[0]} meant to be {near[0]}?" if near else ""
    return ""


def _official_spelling(name: str) -> str:
    """An official name as upstream spells it today; what is not one stays as it is."""
    ours = official_to_ours(name)
    return name if ours is None else str(ours_to_official(ours))


def _class_names(cfg: Config) -> list[str]:
    for loader in ("test_dataloader", "val_dataloader", "train_dataloader"):
        names = ((cfg.get(loader) or {}).get("dataset") or {}).get("class_names")
        if names:
            return [str(name) for name in names]
    return list(CLASS_NAMES)


def _class_rows(theirs: Any, ours: Sequence[str], *, path: str) -> tuple[list[int] | None, str]:
    if not isinstance(theirs, list | tuple) or not theirs:
        return None, "classes: not named in the file, taken to be in BEVFormer's order"
    theirs = [str(name) for name in theirs]
    if theirs == list(ours):
        return None, "classes: in the config's order"
    if sorted(theirs) != sorted(ours):
        difference = describe_difference(ours, theirs, own="the config", other="the checkpoint")
        raise CheckpointError(f"the classes differ: {difference}. Use a config with the same ones", path=path)
    return [theirs.index(name) for name in ours], "classes: reordered from the file's order to the config's"


def _missing_switches(cfg: Config, *, has_map: bool) -> list[str]:
    """What official weights were trained with and the config does not say."""
    wanted = _TRAINED_WITH_MAP if has_map else _TRAINED_WITH
    own = UpstreamCompat.read(cfg.model.get("upstream_compat"))
    lacking = {name: value for name, value in wanted.items() if getattr(own, name) != value}
    if not lacking:
        return ["upstream's switches that these weights were trained with are set in the config"]
    merged = {name: value for name, value in vars(own).items() if value not in (None, False)} | lacking
    text = json.dumps(merged, separators=(",", ":"))
    probably = (
        "" if has_map else " (aliased_shift: code before 2023-07-27, so probably the released checkpoints)"
    )
    return [
        f"these weights were trained with upstream's defects{probably}; for upstream's scores add",
        f"  --set 'model.upstream_compat={text}'",
    ]

"""Files of the official code: read through torch's restricted unpickler alone, and written as plain tensors.

What a file names beside tensors and containers is refused by name; nothing of it is imported or called. Two names are
known in addition, since mmcv writes numpy's numbers into `meta`: they stand for substitutes of ours that compute a
plain Python number from the stored bytes. (numpy's own constructors take a dtype whose state the file chooses.)
"""

import io
import pickle
import re
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as parse_safetensors
from torch import Tensor

from perception.checkpoint.errors import CheckpointError
from perception.checkpoint.plain import check_plain, detach_model_state, first_non_finite
from perception.utils import sha256_file, write_bytes_atomic

WRAPPERS = ("state_dict", "model", "ema")
"""Keys under which a state dict may lie, in the order in which they are tried."""

_NUMBERS = {"b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q",
            "f2": "e", "f4": "f", "f8": "d"}  # fmt: skip
_GLOBAL = re.compile(r"GLOBAL (\S+)")
_LOAD_ERRORS = (
    OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, IndexError, AttributeError, AssertionError,
    struct.error, OverflowError,
)  # fmt: skip
_STRIP = (
    "Where you trust the file: load it with the software that wrote it, keep {'state_dict': ...} of plain tensors, "
    "save that, and convert it"
)


@dataclass(frozen=True, kw_only=True)
class UpstreamFile:
    """What was read.

    Attributes:
        tensors: name → CPU tensor, as the file has them.
        meta: the file's `meta`, where it has one: plain values.
        taken_from: keys that led to the state dict, e.g. "state_dict"; "" where it is the whole file.
        ignored: other keys of the file.
        sha256: hash of the file.
    """

    tensors: dict[str, Tensor]
    meta: dict[str, Any] = field(default_factory=dict)
    taken_from: str = ""
    ignored: tuple[str, ...] = ()
    sha256: str = ""


def read_upstream(path: str | Path) -> UpstreamFile:
    """Read an official checkpoint: `.pth` (either of torch's formats) or `.safetensors`.

    Raises:
        CheckpointError: there is no such file; it is damaged, holds no state dict or something not finite; or it names
            something outside the allow-list, which the message repeats.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise CheckpointError(f"{path.name} {what}. Give an official checkpoint, a .pth file", path=path)
    content = _load(path)
    tensors, keys = _unwrap(content)
    if tensors is None:
        found = ", ".join(map(repr, content)) if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(
            f"{path.name} holds no state dict (names with tensors), neither as a whole nor under "
            f"{', '.join(map(repr, WRAPPERS))}; found: {found[:200]}. Give another file",
            path=path,
        )
    odd = [name for name, value in tensors.items() if value.layout != torch.strided or value.is_quantized]
    if odd:
        raise CheckpointError(f"{odd[0]} is a sparse or quantised tensor; give dense weights", path=path)
    bad = first_non_finite(tensors, name="the state dict")
    if bad is not None:
        raise CheckpointError(f"{bad} holds NaN or infinity. Give another file", path=path)
    meta = content.get("meta") if keys else None
    return UpstreamFile(
        tensors=tensors,
        meta=dict(meta) if isinstance(meta, Mapping) else {},
        taken_from=".".join(keys),
        ignored=tuple(str(key) for key in content if key not in (*keys[:1], "meta")) if keys else (),
        sha256=sha256_file(path),
    )


def write_upstream(path: str | Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write `{"state_dict": ..., "meta": ...}` for the official code; `weights_only=True` reads it too.

    Args:
        path: file; written whole or not at all.
        tensors: name → tensor, in upstream's names.
        meta: plain values; `CLASSES` is what upstream's test script looks for.

    Raises:
        CheckpointError: a value is not plain.
    """
    check_plain(meta, name="meta", path=str(path))
    buffer = io.BytesIO()
    torch.save({"state_dict": detach_model_state(tensors, path=str(path)), "meta": dict(meta)}, buffer)
    write_bytes_atomic(path, buffer.getvalue())


def _load(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return parse_safetensors(path.read_bytes())
        with warnings.catch_warnings(), torch.serialization.safe_globals(_substitutes()):
            warnings.simplefilter("ignore")  # advice about pickle protocols; what matters comes as an error
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        message = str(error)
        named = _GLOBAL.search(message)
        if named:
            raise CheckpointError(
                f"{path.name} is refused: it names {named[1]}, which is neither a tensor nor plain data and could run "
                f"code. Nothing of it was run, and there is no switch that would. {_STRIP}",
                path=path,
            ) from None
        raise CheckpointError(
            f"{path.name} is refused or damaged: it is not a plain torch file ({_reason(message)}). {_STRIP}",
            path=path,
        ) from None
    except Exception as error:
        if not isinstance(error, _LOAD_ERRORS) and type(error).__module__.partition(".")[0] != "safetensors":
            raise
        raise CheckpointError(
            f"{path.name} is no checkpoint, or a damaged one ({type(error).__name__}: {_reason(str(error))}). "
            "Get the file again",
            path=path,
        ) from error


def _reason(message: str) -> str:
    """The part of torch's message that says what was found, without its advice to switch safety off."""
    for line in message.splitlines():
        text = line.rpartition("WeightsUnpickler error: ")[2].strip()
        if text and "weights_only" not in text and "Please file an issue" not in text:
            return text[:200]
    return "no reason given"


def _unwrap(content: Any) -> tuple[dict[str, Tensor] | None, list[str]]:
    keys: list[str] = []
    while isinstance(content, Mapping):
        if content and all(isinstance(name, str) and isinstance(v, Tensor) for name, v in content.items()):
            return {name: value.detach() for name, value in content.items()}, keys
        key = next((key for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if key is None:
            break
        keys.append(key)
        content = content[key]
    return None, []


class _NumberType:
    """Stands for numpy.dtype: remembers the code of a number's type and the byte order."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code = code
        self.order = "<"

    def __setstate__(self, state: tuple) -> None:
        self.order = ">" if state[1] == ">" else "<"


def _number(kind: Any, data: Any) -> Any:
    """Stands for numpy's constructor of scalars: a Python bool, int or float."""
    if not isinstance(kind, _NumberType) or kind.code not in _NUMBERS or not isinstance(data, bytes):
        code = kind.code if isinstance(kind, _NumberType) else type(kind).__name__
        raise pickle.UnpicklingError(f"numpy value of type {str(code)[:40]!r}, allowed are numbers")
    return struct.unpack(kind.order + _NUMBERS[kind.code], data)[0]


def _substitutes() -> list[Any]:
    return [
        (_NumberType, "numpy.dtype"),
        (_number, "numpy.core.multiarray.scalar"),
        (_number, "numpy._core.multiarray.scalar"),
    ]

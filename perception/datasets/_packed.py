"""Samples of an index as one block of JSON bytes.

28,000 samples as Python objects take gigabytes, and every loader worker that touches their reference counts gets
its own copy of the pages. One array of bytes is shared, and parsing a sample takes a fraction of a millisecond.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from perception.utils import DataError

_WHITESPACE = re.compile(r"[ \t\n\r]*")


class PackedSamples:
    """A read-only list of JSON objects.

    Args:
        content: the objects' JSON texts, one after another.
        ends: (n,), where each text ends.
    """

    def __init__(self, *, content: np.ndarray, ends: np.ndarray) -> None:
        self._content = content
        self._ends = ends

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        start = 0 if idx == 0 else self._ends[idx - 1]
        return json.loads(self._content[start : self._ends[idx]].tobytes())


def read_index(
    path: str | Path, visit: Callable[[dict[str, Any]], None]
) -> tuple[dict[str, Any], PackedSamples]:
    """Read an index file without ever holding all of its samples as objects.

    Args:
        path: JSON file {"metainfo": {...}, "data_list": [...]}.
        visit: called with each sample, in order, while it is parsed anyway.

    Returns:
        metainfo, samples.

    Raises:
        DataError: no such file, not JSON, or not of this form.
    """
    path = Path(path)
    if path.suffix in (".pkl", ".pickle"):
        raise DataError(
            "pickled info files can run code when they are read and are refused; build a JSON index with "
            "`perception data prepare ROOT`.",
            path=path,
        )
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError(
            "there is no such index; build it with `perception data prepare ROOT`.", path=path
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"not a text file ({error}); build the index again.", path=path) from error
    try:
        return _parse(text, visit)
    except (json.JSONDecodeError, _FormError) as error:
        raise DataError(
            f"not a readable index ({error}); build it with `perception data prepare ROOT`.", path=path
        ) from error


class _FormError(ValueError):
    """The JSON is not an index."""


def _parse(text: str, visit: Callable[[dict[str, Any]], None]) -> tuple[dict[str, Any], PackedSamples]:
    decoder = json.JSONDecoder()
    metainfo: dict[str, Any] = {}
    samples: PackedSamples | None = None
    position = _expect(text, 0, "{")
    while text[position : position + 1] != "}":
        key, position = decoder.raw_decode(text, position)
        position = _expect(text, position, ":")
        if key == "data_list":
            samples, position = _parse_samples(text, position, decoder, visit)
        else:
            value, position = decoder.raw_decode(text, position)
            metainfo = value if key == "metainfo" else metainfo
        position = _separator(text, position, "}")
    if samples is None:
        raise _FormError("it has no data_list")
    if not isinstance(metainfo, dict):
        raise _FormError("metainfo is not an object")
    return metainfo, samples


def _parse_samples(
    text: str, position: int, decoder: json.JSONDecoder, visit: Callable[[dict[str, Any]], None]
) -> tuple[PackedSamples, int]:
    chunks: list[bytes] = []
    position = _expect(text, position, "[")
    while text[position : position + 1] != "]":
        sample, end = decoder.raw_decode(text, position)
        if not isinstance(sample, dict):
            raise _FormError(f"sample {len(chunks)} is not an object")
        visit(sample)
        chunks.append(text[position:end].encode())
        position = _separator(text, end, "]")
    ends = np.cumsum([len(chunk) for chunk in chunks], dtype=np.int64)
    content = np.frombuffer(b"".join(chunks), dtype=np.uint8)
    return PackedSamples(content=content, ends=ends), _skip(text, position + 1)


def _separator(text: str, position: int, closing: str) -> int:
    position = _skip(text, position)
    return position if text[position : position + 1] == closing else _expect(text, position, ",")


def _expect(text: str, position: int, character: str) -> int:
    position = _skip(text, position)
    if text[position : position + 1] != character:
        raise json.JSONDecodeError(f"Expecting {character!r}", text, position)
    return _skip(text, position + 1)


def _skip(text: str, position: int) -> int:
    match = _WHITESPACE.match(text, position)
    return position if match is None else match.end()

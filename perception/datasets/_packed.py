"""Samples of an index as one block of JSON bytes.

28,000 samples as Python objects take gigabytes, and every loader worker that touches their reference counts gets
its own copy of the pages. One array of bytes is shared, and parsing a sample takes a fraction of a millisecond.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from perception.utils import DataError
from perception.utils.json_stream import JsonStream


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
    metainfo: dict[str, Any] = {}
    content, ends = bytearray(), list[int]()
    with _open_index(path) as stream:
        has_samples = False
        for key in stream.keys():
            if key == "data_list":
                has_samples = True
                for sample, text in stream.array():
                    visit(_checked(sample, len(ends)))
                    content += text.encode()
                    ends.append(len(content))
                continue
            value, _ = stream.value()
            metainfo = value if key == "metainfo" else metainfo
        if stream.peek():
            raise _FormError("something follows its end")
        if not has_samples:
            raise _FormError("it has no data_list")
        if not isinstance(metainfo, dict):
            raise _FormError("metainfo is not an object")
    array = np.frombuffer(content, dtype=np.uint8)
    return metainfo, PackedSamples(content=array, ends=np.array(ends, dtype=np.int64))


def read_first_sample(path: str | Path) -> dict[str, Any]:
    """The first sample of an index file; nothing after it is read.

    Raises:
        DataError: as `read_index`, or the index holds no sample.
    """
    with _open_index(path) as stream:
        for key in stream.keys():
            if key == "data_list":
                for sample, _ in stream.array():
                    return _checked(sample, 0)
                raise _FormError("it holds no sample")
            stream.value()
        raise _FormError("it has no data_list")


def read_metainfo(path: str | Path) -> dict[str, Any]:
    """What an index file says of itself: version, split, classes; its samples are passed over where they come first.

    Raises:
        DataError: as `read_index`, or it says nothing.
    """
    with _open_index(path) as stream:
        for key in stream.keys():
            if key == "data_list":
                for _ in stream.array():
                    pass
                continue
            value, _ = stream.value()
            if key == "metainfo" and isinstance(value, dict):
                return value
        raise _FormError("it has no metainfo")


def image_sizes(path: str | Path) -> dict[str, tuple[int, int] | None]:
    """Path of each image that an index names → its width and height, None where the index does not say.

    Raises:
        DataError: as `read_index`, or a sample names no images.
    """
    sizes: dict[str, tuple[int, int] | None] = {}

    def visit(sample: dict[str, Any]) -> None:
        try:
            for image in sample["images"].values():
                has_size = "width" in image and "height" in image
                sizes[image["img_path"]] = (image["width"], image["height"]) if has_size else None
        except (KeyError, TypeError, AttributeError) as error:
            raise _FormError("a sample does not name its images") from error

    read_index(path, visit)
    return sizes


class _FormError(ValueError):
    """The JSON is not an index."""


def _checked(sample: Any, number: int) -> dict[str, Any]:
    if not isinstance(sample, dict):
        raise _FormError(f"sample {number} is not an object")
    return sample


@contextmanager
def _open_index(path: str | Path) -> Iterator[JsonStream]:
    path = Path(path)
    if path.suffix in (".pkl", ".pickle"):
        raise DataError(
            "pickled info files can run code when they are read and are refused; build a JSON index with "
            "`perception data prepare ROOT`.",
            path=path,
        )
    try:
        with path.open(encoding="utf-8", newline="") as file:
            yield JsonStream(file)
    except FileNotFoundError as error:
        raise DataError(
            "there is no such index; build it with `perception data prepare ROOT`.", path=path
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"not a text file ({error}); build the index again.", path=path) from error
    except (json.JSONDecodeError, _FormError) as error:
        raise DataError(
            f"not a readable index ({error}); build it with `perception data prepare ROOT`.", path=path
        ) from error

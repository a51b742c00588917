"""Reading parity fixtures: arrays that the official code made, and the config beside them."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from perception.utils import DataError

STATE = "state_dict/"
BINZE = "BEVFormer_segmentation_detection"
"""Name of the repository whose temporal encoder has the aliased shift."""


@dataclass(frozen=True)
class Fixture:
    """One fixture.

    name: the file's, without suffix.
    info: its JSON: the repository, the official config, sizes.
    arrays: name → array; weights begin with `state_dict/`, what to compare with `outputs/`.
    """

    name: str
    info: Mapping[str, Any]
    arrays: Mapping[str, Tensor]

    @property
    def is_binze(self) -> bool:
        """Whether the segmentation fork made it."""
        return self.info.get("repo") == BINZE


def find_fixtures(folder: str | Path) -> list[Path]:
    """The `.npz` files with a `.json` beside them, in `folder/fixtures` or, where there is none, in `folder`.

    Raises:
        DataError: there is none.
    """
    root = Path(folder)
    root = root / "fixtures" if (root / "fixtures").is_dir() else root
    found = sorted(path for path in root.glob("*.npz") if path.with_suffix(".json").is_file())
    if not found:
        raise DataError(
            "no parity fixture (.npz with a .json beside it) is there; give its folder.", path=root
        )
    return found


def read_fixture(path: str | Path) -> Fixture:
    """A fixture; one that holds outputs alone takes weights and inputs from the one that its JSON names.

    Raises:
        DataError: one of its files is missing or not readable.
    """
    file = Path(path)
    try:
        info = json.loads(file.with_suffix(".json").read_text())
        arrays = _read_arrays(file)
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise DataError(f"the parity fixture cannot be read: {error}.", path=file) from error
    source = info.get("same_state_and_inputs_as")
    if source:
        shared = read_fixture(file.with_name(f"{source}.npz")).arrays
        arrays = {**{k: v for k, v in shared.items() if k.startswith((STATE, "inputs/"))}, **arrays}
    return Fixture(file.stem, info, arrays)


def official_state(arrays: Mapping[str, Tensor], prefix: str = STATE) -> dict[str, Tensor]:
    """The weights below a prefix, by their official names."""
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


def count(keys: Iterable[str], pattern: str) -> int:
    """How many of `pattern` with 0, 1, 2, … for {} are there, without a gap."""
    present = set(keys)
    number = 0
    while pattern.format(number) in present:
        number += 1
    return number


def _read_arrays(file: Path) -> dict[str, Tensor]:
    with np.load(file, allow_pickle=False) as archive:
        return {key: torch.from_numpy(archive[key]) for key in archive.files}

"""Where the official code's numbers lie, which some tests compare with."""

import os
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("PERCEPTION_PARITY", Path(__file__).resolve().parents[2] / "shared" / "parity"))
"""`shared/parity` beside the repository, or wherever PERCEPTION_PARITY says."""


def require(name: str) -> Path:
    """A file below the folder (the folder itself: "."); the test is skipped where there is none."""
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"no {path}; set PERCEPTION_PARITY to the folder of parity fixtures")
    return path

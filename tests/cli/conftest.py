"""The small world as the command line takes it."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def index(nano_index: Path) -> Path:
    return nano_index


@pytest.fixture(scope="session")
def options(nano_options: list[str]) -> list[str]:
    return ["--set", *nano_options]

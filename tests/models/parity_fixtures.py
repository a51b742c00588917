"""Reading the official code's numbers (see the parity folder's README)."""

from collections.abc import Mapping

from torch import Tensor

from perception.engine.parity import read_fixture
from tests.parity import require


def read_arrays(name: str) -> Mapping[str, Tensor]:
    """The arrays of a fixture; the test is skipped where it is not there."""
    return read_fixture(require(f"fixtures/{name}.npz")).arrays

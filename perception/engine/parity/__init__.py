"""The model against numbers of the official code: fixture by fixture, quantity by quantity.

It stands in the engine, above the models and the checkpoints' name map, because it runs both and nothing needs it but
the tests and `tools/parity_table.py`.
"""

from perception.engine.parity.comparison import Comparison, Difference
from perception.engine.parity.fixtures import Fixture, find_fixtures, read_fixture
from perception.engine.parity.run import compare_fixture
from perception.engine.parity.table import render_table

__all__ = [
    "Comparison",
    "Difference",
    "Fixture",
    "compare_fixture",
    "find_fixtures",
    "read_fixture",
    "render_table",
]

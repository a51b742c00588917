"""Mean and standard error over seeds."""

import numpy as np
import pytest
from scipy import stats

from perception.utils.seed_statistics import markdown_table, metrics_over_seeds, over_seeds


@pytest.mark.parametrize("num", [2, 3, 10])
def test_against_scipy(num: int) -> None:
    values = np.random.default_rng(num).normal(5.0, 2.0, size=num)
    found = over_seeds(values)
    assert found.mean == pytest.approx(values.mean(), rel=1e-12)
    assert found.error == pytest.approx(stats.sem(values), rel=1e-12)
    assert found.num == num


def test_one_seed_has_no_error() -> None:
    assert over_seeds([0.25]).as_json() == {"mean": 0.25, "standard_error": None, "num_seeds": 1}
    assert over_seeds([0.25]).text() == "0.2500"
    assert over_seeds([-0.01, -0.03]).text(1, 100.0) == "-2.0 ± 1.0"


def test_no_seed_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one seed"):
        over_seeds([])


def test_only_metrics_that_all_seeds_have() -> None:
    found = metrics_over_seeds([{"b": 1.0, "a": 2.0, "c": 0.0}, {"a": 4.0, "b": 1.0}])
    assert {name: mean.mean for name, mean in found.items()} == {"b": 1.0, "a": 3.0}
    assert list(found) == ["b", "a"]
    assert metrics_over_seeds([]) == {}


def test_table() -> None:
    assert markdown_table(["a"], []).splitlines() == ["| a |", "| --- |"]

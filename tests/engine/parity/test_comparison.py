"""Measuring differences, and the table of them."""

import math

import pytest
import torch

from perception.engine.parity import Comparison, Fixture, render_table


def compare_with(**arrays):
    return Comparison(Fixture("one", {}, {name: torch.tensor(value) for name, value in arrays.items()}))


def only(compare):
    (difference,) = compare.differences
    return difference


def test_the_worst_difference_of_a_quantity_is_kept():
    compare = compare_with(a=[1.0, 2.0], b=[0.0], c=[5.0])
    compare.near("x", "a", torch.tensor([1.5, 2.0]), 1.0)
    compare.near("x", "b", torch.tensor([-2.0]), 1.0)
    compare.near("x", "missing", torch.tensor([9.0]), 1.0)
    difference = only(compare)
    assert (difference.error, difference.array, difference.is_within) == (2.0, "b", False)
    assert compare.unused == ["c"]


def test_only_where():
    compare = compare_with(a=[1.0, 1e9])
    compare.near("x", "a", torch.tensor([1.25, 0.0]), 1.0, where=torch.tensor([True, False]))
    assert only(compare).error == 0.25


def test_exact_counts_unequal_entries():
    compare = compare_with(a=[1, 2, 3])
    compare.exact("x", "a", torch.tensor([1, 0, 0]))
    assert (only(compare).error, only(compare).is_within) == (2.0, False)


def test_relative_to_the_largest_entry():
    compare = compare_with(a=[10.0, 0.0])
    compare.relative("x", "a", torch.tensor([10.0, 1.0]), 1.0)
    assert only(compare).error == pytest.approx(0.1)


@pytest.mark.parametrize(
    "actual", [[1.0, math.nan, math.nan], [1.0, math.inf, math.nan], [1.0, 2.0, 3.0], [1.0, 2.0]]
)
def test_other_nans_infinities_and_shapes_are_infinitely_far(actual):
    compare = compare_with(a=[1.0, 2.0, math.nan])
    compare.near("x", "a", torch.tensor(actual), 1e30)
    assert only(compare).error == math.inf
    assert not only(compare).is_within


def test_nan_where_nan_is_expected():
    compare = compare_with(a=[1.0, math.nan])
    compare.near("x", "a", torch.tensor([1.0, math.nan]), 0.0)
    assert only(compare).is_within


def test_headings_are_angles():
    compare = compare_with(a=[[0.0, 0, 0, 1, 1, 1, math.pi, 0, 0]])
    turned = torch.tensor([[0.0, 0, 0, 1, 1, 1, -math.pi + 0.01, 0, 0]])
    compare.boxes("x", "a", turned, 1.0, lambda boxes: boxes)
    assert only(compare).error == pytest.approx(0.01, abs=1e-5)


def test_table(tmp_path):
    first, second = (
        Comparison(Fixture(name, {"head_config": {}}, {"a": torch.tensor([1.0]), "b": torch.tensor([1])}))
        for name in ("one", "two")
    )
    first.near("near", "a", torch.tensor([1.5]), 0.1)
    first.exact("same", "b", torch.tensor([1]))
    second.near("near", "a", torch.tensor([1.0]), 0.1)
    lines = render_table([first, second]).splitlines()
    assert lines[0].startswith(
        "2 fixtures, 3 quantities, 1 beyond the tolerance, 1 official arrays not compared."
    )
    assert lines[2:] == [
        "## Head",
        "",
        "| quantity | `one` | `two` | tolerance |",
        "| --- | --- | --- | --- |",
        "| near | **5.0e-01** | 0.0e+00 | 1e-01 |",
        "| same | 0 | – | exact |",
    ]

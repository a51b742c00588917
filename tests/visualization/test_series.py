"""Series for pictures: columns, gaps, thinner curves, means over runs."""

import numpy as np
import pytest

from perception.visualization.series import binned, over_runs, thinned, with_gaps


def test_columns_are_means_and_holes_stay_empty():
    series = {"a/b": [(float(step), step % 2) for step in range(1, 601)], "a/c": [(1000.0, -1.0)]}
    edges, values = binned(series)
    assert values.shape == (2, len(edges) - 1)
    assert (np.diff(edges) > 0).all()
    assert 100 < values.shape[1] <= 122
    is_full = ~np.isnan(values[0])
    np.testing.assert_allclose(values[0, is_full], 0.5, atol=0.11)
    hole = edges.searchsorted(800.0) - 1
    assert np.isnan(values[:, hole]).all()
    assert values[1, -1] == -1.0
    steps, broken = with_gaps(np.array([1.0, 3.0, 5.0, 50.0]), np.ones(4))
    assert np.isnan(steps).tolist() == np.isnan(broken).tolist() == [False, False, False, True, False]


def test_a_thinned_curve_keeps_its_mean_and_its_ends():
    series = [(float(step), float(step) ** 2) for step in range(1, 1001)]
    short = thinned(series, max_points=50)
    assert len(short) == 50
    assert np.mean([value for _, value in short]) == pytest.approx(np.mean([value for _, value in series]))
    assert short[0][0] < 20
    assert short[-1][0] > 980


def test_seeds_of_different_lengths_are_averaged_where_all_have_values():
    first = [(1.0, 1.0), (2.0, 2.0), (3.0, 3.0), (4.0, 4.0)]
    second = [(2.0, 4.0), (3.0, 5.0)]
    assert over_runs([first, second]) == ([(2.0, 3.0), (3.0, 4.0)], [(2.0, 2.0, 4.0), (3.0, 3.0, 5.0)])
    assert over_runs([first, [(9.0, 1.0)]]) == ([], [])
    assert over_runs([first]) == (first, [])

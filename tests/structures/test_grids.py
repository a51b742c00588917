"""Axes of the two grids."""

import numpy as np
import pytest

from perception.structures import BEVGrid, MapGrid


def test_bev_rows_grow_with_y_and_columns_with_x() -> None:
    centres = BEVGrid((-8.0, -4.0, -5.0, 8.0, 4.0, 3.0), bev_h=4, bev_w=8).centres()
    assert centres.shape == (4, 8, 2)
    assert centres[0, 0].tolist() == [-7.0, -3.0]
    assert centres[1, 0].tolist() == [-7.0, -1.0]
    assert centres[0, 1].tolist() == [-5.0, -3.0]


def test_map_rows_run_along_minus_x_and_columns_along_y() -> None:
    centres = MapGrid().centres()
    assert centres.shape == (200, 400, 2)
    np.testing.assert_allclose(centres[0, 0], [14.925, -29.925])
    np.testing.assert_allclose(centres[1, 0] - centres[0, 0], [-0.15, 0.0], atol=1e-12)
    np.testing.assert_allclose(centres[0, 1] - centres[0, 0], [0.0, 0.15], atol=1e-12)


def test_lidar2pixels_inverts_centres() -> None:
    grid = MapGrid(x_range=(-6.0, 3.0), y_range=(-2.0, 4.0), resolution=0.5)
    rows, columns = grid.shape
    pixels = grid.lidar2pixels(grid.centres())
    expected = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1)
    np.testing.assert_allclose(pixels, expected, atol=1e-9)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"x_range": (1.0, -1.0)},
        {"y_range": (-1.0, 1.01)},
        {"resolution": 0.0},
    ],
)
def test_map_grid_refuses(kwargs: dict) -> None:
    with pytest.raises(ValueError, match="x_range|y_range|resolution"):
        MapGrid(**kwargs)


def test_bev_grid_refuses() -> None:
    with pytest.raises(ValueError, match="pc_range"):
        BEVGrid((0.0, 0.0, 0.0, -1.0, 1.0, 1.0), 2, 2)
    with pytest.raises(ValueError, match="bev_h"):
        BEVGrid((0.0, 0.0, 0.0, 1.0, 1.0, 1.0), 0, 2)


def test_a_config_s_range_becomes_a_grid() -> None:
    grid = BEVGrid.from_range([-8, -4, -5, 8, 4, 3], 4, 8)
    assert grid == BEVGrid((-8.0, -4.0, -5.0, 8.0, 4.0, 3.0), 4, 8)
    assert {type(limit) for limit in grid.pc_range} == {float}
    with pytest.raises(ValueError, match=r"six numbers.*got \[-8, -4, 8, 4\]"):
        BEVGrid.from_range([-8, -4, 8, 4], 4, 8)

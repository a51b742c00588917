"""The view from above: forward is up, right is right, headings point the right way."""

import numpy as np
import pytest

from perception.structures import MapGrid
from perception.visualization import BEVView, draw_bev
from perception.visualization.palette import EGO, MAP_COLOURS

GREEN = (0, 255, 0)
VIEW = BEVView(x_range=(-40.0, 40.0), y_range=(-40.0, 40.0), pixels_per_metre=5.0)


def at(image, x, y):
    column, row = VIEW.lidar2pixels(np.array([x, y]))
    return image[int(row), int(column)].astype(int)


def is_green(pixel):
    return pixel[1] > pixel[0] + 60 and pixel[1] > pixel[2] + 60


def test_boxes_stand_where_they_are_with_the_heading_in_front():
    box = np.array([[12.3, 21.7, -1.0, 6.0, 2.0, 2.0, np.pi / 2]])
    image = draw_bev(VIEW, box, [GREEN], fill=0.5)
    assert is_green(at(image, 12.3, 21.7))
    assert is_green(at(image, 11.5, 19.2))  # inside: 6 m along y, 2 m along x
    assert not is_green(at(image, 14.5, 21.7))
    assert not is_green(at(image, -12.3, 21.7))
    assert not is_green(at(image, 12.3, -21.7))
    # The heading line runs from the centre to the front only.
    assert at(image, 12.3, 23.4)[1] > at(image, 12.3, 20.0)[1] + 40


def test_velocity_is_drawn_and_nan_is_not():
    box = np.array([[0.0, 21.7, -1.0, 4.0, 2.0, 2.0, 0.0, 10.0, 0.0]])
    moving = draw_bev(VIEW, box, [GREEN])
    still = draw_bev(VIEW, np.where(np.arange(9) >= 7, np.nan, box), [GREEN])
    column, row = VIEW.lidar2pixels(np.array([8.0, 21.7])).astype(int)
    window = (slice(row - 2, row + 3), slice(column - 8, column + 8))
    assert any(is_green(pixel) for pixel in moving[window].reshape(-1, 3).astype(int))
    assert not any(is_green(pixel) for pixel in still[window].reshape(-1, 3).astype(int))


def test_the_map_lies_under_the_boxes_in_the_right_place():
    grid = MapGrid()
    mask = np.zeros(grid.shape, dtype=int)
    column, row = grid.lidar2pixels(np.array([7.0, 22.0])).round().astype(int)
    mask[row - 4 : row + 5, column - 4 : column + 5] = 2
    image = draw_bev(VIEW, np.zeros((0, 9)), [], map_mask=mask, map_opacity=1.0)
    assert at(image, 7.0, 22.0).tolist() == list(MAP_COLOURS["ped_crossing"])
    for x, y in ((-7.0, 22.0), (7.0, -22.0), (22.0, 7.0)):
        assert at(image, x, y).tolist() != list(MAP_COLOURS["ped_crossing"])


def test_the_car_is_in_the_middle():
    assert at(draw_bev(VIEW, np.zeros((0, 7)), []), 0.3, 0.4).tolist() == list(EGO)


def test_far_boxes_and_wrong_numbers():
    far = np.array([[1e7, 1e7, 0, 4, 2, 2, 0.0]])
    nothing = draw_bev(VIEW, np.zeros((0, 7)), [])
    assert np.array_equal(draw_bev(VIEW, far, [GREEN]), nothing)
    with pytest.raises(ValueError, match="1 boxes but 0 colours"):
        draw_bev(VIEW, far, [])
    with pytest.raises(ValueError, match="its grid"):
        draw_bev(VIEW, far, [GREEN], map_mask=np.zeros((3, 3), int))

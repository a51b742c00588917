"""Boxes and maps in camera images: pixels at places known from the projection."""

import numpy as np
import pytest

from perception.structures import MapGrid
from perception.visualization import draw_boxes_on_image, draw_map_on_image
from perception.visualization.boxes_on_image import NEAR, project_polygon, project_segments
from perception.visualization.palette import MAP_COLOURS

RED = (0, 0, 255)


def coloured(image):
    """(left, top, right, bottom) of what is clearly not black, or None."""
    rows, columns = np.nonzero(image.max(axis=2) > 60)
    return (columns.min(), rows.min(), columns.max(), rows.max()) if len(rows) else None


def test_a_box_is_drawn_where_its_corners_project(image, forward, box):
    out = draw_boxes_on_image(image, box, forward, [RED], thickness=1, fill=0.0)
    # Near face: 9 m away, ±1 m → 100 ± 100/9, 60 ± 100/9.
    left, top, right, bottom = coloured(out)
    for found, expected in zip((left, top, right, bottom), (88.9, 48.9, 111.1, 71.1), strict=True):
        assert abs(found + 0.5 - expected) <= 1.0
    assert out[60, 111].tolist() == pytest.approx(RED, abs=140)
    assert not out[..., :2].any()
    assert not image.any()  # the argument is unchanged


def test_the_front_face_is_tinted(image, forward, box):
    box[0, 6] = -np.pi / 2  # heading towards the camera: the front is the near face
    out = draw_boxes_on_image(image + 100, box, forward, [RED], fill=0.5)
    assert out[55, 95].tolist() == [50, 50, 178]
    assert out[30, 30].tolist() == [100, 100, 100]
    plain = draw_boxes_on_image(image + 100, box, forward, [RED], fill=0.0)
    assert plain[55, 95].tolist() == [100, 100, 100]


def test_nearer_boxes_lie_over_farther_ones(image, forward, box):
    far = box + [[0, 10, 0, 0, 0, 0, 0, 0, 0]]
    turned = np.concatenate([box, far])
    turned[:, 6] = -np.pi / 2
    out = draw_boxes_on_image(image, turned, forward, [RED, (255, 0, 0)], fill=1.0)
    assert out[60, 97].tolist() == list(RED)


@pytest.mark.parametrize("offset", [(0.0, -20.0), (0.5, -10.9), (30.0, -12.0)])
def test_boxes_behind_the_camera_leave_no_trace(image, forward, box, offset):
    box[0, :2] += offset
    box[0, 1] -= 10.0
    assert not draw_boxes_on_image(image, box, forward, [RED]).any()


def test_a_box_across_the_image_plane_shows_only_its_visible_part(image, forward):
    # 20 m long wall on the right, from 10 m behind to 10 m ahead, at x 2...3: visible only right of the middle.
    wall = np.array([[2.5, 0.0, -1.0, 20.0, 1.0, 2.0, np.pi / 2]])
    out = draw_boxes_on_image(image, wall, forward, [RED], thickness=1)
    left, _, right, _ = coloured(out)
    assert left >= 118  # far end: 100 + 100·2/10 = 120, less a line's width
    assert right == 199
    # Its lower inner edge is a straight line from (120, 70) on with slope z/x = 1/2.
    for column in (130, 150, 180):
        row = 60 + (column - 100) / 2
        assert out[int(row) - 1 : int(row) + 2, column, 2].max() > 60


def test_the_box_around_the_camera_does_no_harm(image, forward):
    out = draw_boxes_on_image(image, np.array([[0.0, 0, -1, 4, 4, 2, 0.3]]), forward, [RED])
    assert out.shape == image.shape


def test_six_turned_cameras_see_each_box_once(image, turned):
    rng = np.random.default_rng(0)
    for angle in rng.uniform(-np.pi, np.pi, 8):
        box = np.array([[-20 * np.sin(angle), 20 * np.cos(angle), -0.5, 1, 1, 1, 0.2]])
        seen = [
            coloured(draw_boxes_on_image(image, box, turned(angle + step), [RED])) for step in (0.0, np.pi)
        ]
        assert seen[0] is not None
        assert seen[1] is None
        assert abs((seen[0][0] + seen[0][2]) / 2 - 100) < 3


def test_clipping_keeps_points_on_the_line():
    segment = np.array([[[10.0, 0.0, 1.0], [10.0, 0.0, -1.0]], [[1.0, 1.0, -5.0], [0.0, 0.0, -1.0]]])
    clipped = project_segments(segment)
    assert clipped.shape == (1, 2, 2)
    assert clipped[0].tolist() == [[10.0, 0.0], [pytest.approx(10.0 / NEAR), 0.0]]
    square = np.array([[-1.0, 0, 1], [1, 0, 1], [1, 0, -1], [-1, 0, -1]])
    assert len(project_polygon(square)) == 4
    assert len(project_polygon(square - [0, 0, 5])) == 0


def test_no_boxes_and_wrong_input(image, forward, box):
    empty = draw_boxes_on_image(image, np.zeros((0, 9)), forward, [])
    assert np.array_equal(empty, image)
    with pytest.raises(ValueError, match="1 boxes but 2 colours"):
        draw_boxes_on_image(image, box, forward, [RED, RED])
    with pytest.raises(ValueError, match="uint8"):
        draw_boxes_on_image(image.astype(np.float32), box, forward, [RED])


def test_the_map_is_painted_where_the_ground_projects(image, forward):
    grid = MapGrid()
    mask = np.zeros(grid.shape, dtype=np.int64)
    column, row = grid.lidar2pixels(np.array([1.0, 10.0])).round().astype(int)
    mask[row - 2 : row + 3, column - 2 : column + 3] = 3
    out = draw_map_on_image(image, forward, mask=mask, ground_z=-2.0, opacity=1.0)
    u, v = 100 + 100 * 1.0 / 10, 60 + 100 * 2.0 / 10
    assert out[int(v), int(u)].tolist() == list(MAP_COLOURS["boundary"])
    left, top, right, bottom = coloured(out)
    assert abs((left + right) / 2 - u) < 1.5
    assert abs((top + bottom) / 2 - v) < 1.5
    assert right - left < 10


def test_nothing_is_painted_above_the_horizon_or_behind(image, forward):
    grid = MapGrid()
    mask = np.full(grid.shape, 1)
    out = draw_map_on_image(image, forward, mask=mask, ground_z=-2.0)
    assert not out[:61].any()
    assert out[100].any()
    behind = np.where(grid.centres()[..., 1] < -0.5, 2, 0)
    assert not draw_map_on_image(image, forward, mask=behind, ground_z=-2.0).any()


def test_polylines_are_cut_at_the_image_plane(image, forward):
    line = np.array([[1.0, -50.0], [1.0, 50.0]])
    out = draw_map_on_image(image, forward, polylines={"divider": [line]}, ground_z=-2.0, thickness=1)
    left, top, _, bottom = coloured(out)
    assert left >= 101
    assert top >= 62
    assert bottom == 119
    assert out[100, 120].any()  # at depth 5 m: 100 + 100/5, 60 + 200/5


def test_a_mask_of_another_grid_is_refused(image, forward):
    with pytest.raises(ValueError, match="its grid"):
        draw_map_on_image(image, forward, mask=np.zeros((10, 10), int))
    assert np.array_equal(draw_map_on_image(image, forward), image)

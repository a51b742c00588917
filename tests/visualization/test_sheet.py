"""Sheets: the layout of the rig, truth against prediction, thresholds, files with any name."""

import cv2
import numpy as np
import pytest

from perception.structures import CAMERA_NAMES, MapGrid
from perception.visualization import CAMERA_ROWS, contact_sheet, draw_sample, save_image
from perception.visualization.palette import CLASS_COLOURS


@pytest.fixture
def rig(turned, image):
    angles = (0.0, -1.0, 1.0, np.pi, 1.9, -1.9)
    shades = {name: image + 20 * (index + 1) for index, name in enumerate(CAMERA_NAMES)}
    matrices = {name: turned(angle) for name, angle in zip(CAMERA_NAMES, angles, strict=True)}
    return shades, matrices


def cell(sheet, row, column, cell_width=200, cell_height=120):
    top, left = 40 + row * (cell_height + 6), 12 + column * (cell_width + 6)
    return sheet[top : top + cell_height, left : left + cell_width]


def test_cameras_lie_as_on_the_rig(rig):
    images, matrices = rig
    sheet = draw_sample(images, matrices, np.zeros((0, 9)), np.zeros(0, int), cell_width=200)
    assert [name for row in CAMERA_ROWS for name in row] == [
        "CAM_FRONT_LEFT",
        "CAM_FRONT",
        "CAM_FRONT_RIGHT",
        "CAM_BACK_LEFT",
        "CAM_BACK",
        "CAM_BACK_RIGHT",
    ]
    for row, names in enumerate(CAMERA_ROWS):
        for column, name in enumerate(names):
            assert cell(sheet, row, column)[60, 100].tolist() == images[name][60, 100].tolist()


def test_boxes_follow_the_scaling_of_their_image(rig, box):
    images, matrices = rig
    double = {**images, "CAM_FRONT": cv2.resize(images["CAM_FRONT"], (400, 240))}
    scaled = {**matrices, "CAM_FRONT": np.diag([2.0, 2, 1, 1]) @ matrices["CAM_FRONT"]}
    first = draw_sample(images, matrices, box, np.array([0]), cell_width=200)
    second = draw_sample(
        {name: double[name] for name in CAMERA_NAMES}, scaled, box, np.array([0]), cell_width=200
    )
    assert np.array_equal(cell(first, 0, 1), cell(second, 0, 1))
    difference = np.abs(cell(first, 0, 1).astype(int) - images["CAM_FRONT"])
    assert difference[45:75, 85:115].max() > 60
    assert difference[30:, :80].max() == 0


def test_prediction_and_truth_can_be_told_apart(rig, box):
    images, matrices = rig
    truth = box + [[3.0, 0, 0, 0, 0, 0, 0, 0, 0]]
    both = draw_sample(
        images,
        matrices,
        box,
        np.array([0]),
        np.ones(1),
        gt_boxes=truth,
        gt_labels=np.array([0]),
        cell_width=200,
    )
    one = draw_sample(images, matrices, box, np.array([0]), np.ones(1), cell_width=200)
    assert both.shape[1] > one.shape[1]  # a second view from above
    front = cell(both, 0, 1).astype(int)
    spread = front.max(axis=2) - front.min(axis=2)
    assert spread[45:75, 116:].max() < 40  # the truth is white ...
    assert front[45:75, 118:].max() > 200
    assert spread[45:75, 85:110].max() > 80  # ... the prediction has its class's colour


def test_the_threshold_hides_boxes(rig, box):
    images, matrices = rig
    hidden = draw_sample(images, matrices, box, np.array([0]), np.array([0.2]), cell_width=200)
    nothing = draw_sample(images, matrices, np.zeros((0, 9)), np.zeros(0, int), np.zeros(0), cell_width=200)
    assert np.array_equal(hidden[40:], nothing[40:])
    lower = draw_sample(
        images, matrices, box, np.array([0]), np.array([0.2]), score_threshold=0.1, cell_width=200
    )
    assert not np.array_equal(lower[40:], nothing[40:])


def test_masks_fewer_cameras_and_unicode_titles(rig, tmp_path):
    images, matrices = rig
    mask = np.ones(MapGrid().shape, dtype=int)
    sheet = draw_sample(
        {"CAM_BACK": images["CAM_BACK"]},
        matrices,
        np.zeros((0, 9)),
        np.zeros(0, int),
        map_mask=mask,
        gt_map_mask=mask,
        cell_width=200,
        title="Straße · 上海 · ✓",
    )
    assert cell(sheet, 1, 1)[100, 100].tolist() != images["CAM_BACK"][100, 100].tolist()
    path = save_image(tmp_path / "ein Ordner ö" / "sheet №1.png", sheet)
    back = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    assert np.array_equal(back, sheet)
    with pytest.raises(ValueError, match=r"\.png or \.jpg"):
        save_image(tmp_path / "x.bmp", sheet)


def test_class_colours_can_be_told_apart():
    colours = np.array(list(CLASS_COLOURS.values()), dtype=float)
    distance = np.linalg.norm(colours[:, None] - colours[None], axis=-1) + 1e3 * np.eye(len(colours))
    assert distance.min() > 45


def test_wrong_input_is_named(rig, box):
    images, matrices = rig
    with pytest.raises(ValueError, match="CAM_ROOF"):
        draw_sample({"CAM_ROOF": images["CAM_FRONT"]}, matrices, box, np.array([0]))
    with pytest.raises(ValueError, match="lidar2img has no CAM_BACK"):
        draw_sample(
            images,
            {
                "CAM_FRONT": matrices["CAM_FRONT"],
                **{name: matrices[name] for name in CAMERA_NAMES if name != "CAM_BACK"},
            },
            box,
            np.array([0]),
        )
    with pytest.raises(ValueError, match="1 boxes, 2 labels"):
        draw_sample(images, matrices, box, np.array([0, 1]))
    with pytest.raises(ValueError, match="gt_labels"):
        draw_sample(images, matrices, box, np.array([0]), gt_boxes=box)


def test_contact_sheet_places_images_and_captions():
    images = [np.full((30, 60, 3), value, np.uint8) for value in (50, 100, 150, 200)]
    sheet = contact_sheet(images, columns=3, cell_width=60, captions=["eins", "zwei"])
    height = 30 + 26 + 6
    assert sheet.shape == (2 * height + 6, 3 * 66 + 6, 3)
    for index, image in enumerate(images):
        top, left = 6 + index // 3 * height, 6 + index % 3 * 66
        assert (sheet[top + 15, left + 30] == image[0, 0]).all()
    assert sheet[37:60, 6:66].max() > 150  # a caption
    assert sheet[37:60, 138:198].max() < 60  # none
    with pytest.raises(ValueError, match="at least one image"):
        contact_sheet([])


def test_a_tall_sheet_has_its_views_below_and_wraps_its_legend(rig, box):
    images, matrices = rig
    options = {"gt_boxes": box, "gt_labels": np.array([0]), "cell_width": 200, "title": "x"}
    wide = draw_sample(images, matrices, box, np.array([0]), np.ones(1), **options)
    tall = draw_sample(images, matrices, box, np.array([0]), np.ones(1), is_tall=True, **options)
    assert tall.shape[1] == 3 * 200 + 2 * 6 + 24 < wide.shape[1]
    assert tall.shape[0] > wide.shape[0]
    assert np.array_equal(cell(tall, 0, 1), cell(wide, 0, 1))
    colour = np.array(CLASS_COLOURS["traffic_cone"])
    legend = tall[-80:]
    assert (np.abs(legend.astype(int) - colour).max(axis=-1) < 3).any()

"""Sheets of one picture: panels side by side, boxes and tints where the labels are, nothing where there are none."""

import numpy as np
import pytest

from perception.structures import BDD_BOX_CLASSES, BDD_SEG_CLASSES
from perception.visualization import ImageLabels, draw_image_sample
from perception.visualization.image_sheet import overlay_segmentation
from perception.visualization.palette import BOX_COLOURS_2D, PAPER, SEG_COLOURS

GREY = np.full((90, 160, 3), 128, np.uint8)
BOXES = np.array([[20.0, 30, 60, 70], [100, 10, 140, 50]])
LABELS = np.array([2, 9])
TOP, LEFT = 34 + 24, 6


def panel(sheet, number=0, width=160, height=90):
    left = LEFT + number * (width + 6)
    return sheet[TOP : TOP + height, left : left + width]


def draw(*layers, image=GREY, **options):
    return draw_image_sample(image, layers, panel_width=image.shape[1], **options)


def test_every_class_has_a_colour_of_its_own():
    assert set(BOX_COLOURS_2D) == set(BDD_BOX_CLASSES)
    assert set(SEG_COLOURS) == set(BDD_SEG_CLASSES)
    for colours in (BOX_COLOURS_2D, SEG_COLOURS):
        assert len(set(colours.values())) == len(colours)


def test_boxes_are_drawn_at_their_edges():
    first = panel(draw(ImageLabels("Truth", boxes=BOXES, labels=LABELS)))
    changed = (first != GREY).any(axis=-1)
    rows, columns = np.nonzero(changed[:, :80])
    # Edges lie between two pixels; smoothing reaches one further.
    assert (
        np.abs(np.array([rows.min(), rows.max(), columns.min(), columns.max()]) - (29, 70, 19, 60)).max() <= 1
    )
    assert not changed[35:65, 25:55].any()
    strongest = first[30:70, 18:22].reshape(-1, 3).astype(int)
    wanted = np.array(BOX_COLOURS_2D["car"])
    assert np.abs(strongest - wanted).sum(axis=1).min() < 160


def test_a_box_scales_with_the_panel():
    sheet = draw_image_sample(GREY, [ImageLabels("Truth", boxes=BOXES, labels=LABELS)], panel_width=320)
    changed = (panel(sheet, width=320, height=180) != 128).any(axis=-1)
    rows, columns = np.nonzero(changed[:, :160])
    assert (
        np.abs(np.array([rows.min(), rows.max(), columns.min(), columns.max()]) - (59, 140, 39, 120)).max()
        <= 1
    )


def test_tints_follow_the_mask_and_leave_what_is_no_class():
    mask = np.full((90, 160), 255, np.uint8)
    mask[10:40, 20:60] = BDD_SEG_CLASSES.index("sky")
    shown = panel(draw(ImageLabels("Truth", sem_seg=mask)))
    assert ((shown != GREY).any(axis=-1) == (mask != 255)).all()
    expected = np.round(128 + 0.55 * (np.array(SEG_COLOURS["sky"], float) - 128))
    assert shown[20, 30].tolist() == expected.tolist()
    tinted = overlay_segmentation(GREY, mask, list(SEG_COLOURS.values()), opacity=1.0)
    assert tinted[20, 30].tolist() == list(SEG_COLOURS["sky"])


def test_panels_stand_side_by_side():
    empty = ImageLabels("Ground truth")
    found = ImageLabels("Prediction", boxes=BOXES, labels=LABELS, scores=np.array([0.9, 0.1]))
    sheet = draw(empty, found, ImageLabels("Pseudo labels", boxes=np.zeros((0, 4)), labels=np.zeros(0, int)))
    assert sheet.shape[1] == 3 * 160 + 2 * 6 + 2 * 6
    assert (panel(sheet, 0) == GREY).all()
    assert (panel(sheet, 2) == GREY).all()
    second = (panel(sheet, 1) != GREY).any(axis=-1)
    assert second[:, :80].any()
    assert not second[:, 80:].any()  # below the threshold


def test_scores_stay_inside_the_picture():
    edge = np.array([[0.0, 0, 60, 40], [130, 80, 160, 90], [-50, -50, -10, -10], [300, 10, 400, 20]])
    layer = ImageLabels("Prediction", boxes=edge, labels=np.zeros(4, int), scores=np.ones(4))
    assert draw(layer).dtype == np.uint8


def test_ignored_boxes_are_drawn_apart():
    none = {"boxes": np.zeros((0, 4)), "labels": np.zeros(0, int)}
    plain = draw(ImageLabels("Truth", **none))
    shown = draw(ImageLabels("Truth", **none, ignored=BOXES[:1]))
    assert (panel(shown) != panel(plain)).any()
    assert shown.shape == plain.shape


def test_legend_names_what_occurs_only():
    width = 400
    image = np.full((90, width, 3), 128, np.uint8)

    def used(*layers):
        sheet = draw(*layers, image=image)
        legend = sheet[TOP + 90 :]
        return (legend != np.array(PAPER)).any(axis=-1).sum()

    nothing = used(ImageLabels("Truth"))
    one = used(ImageLabels("Truth", boxes=BOXES[:1], labels=LABELS[:1]))
    assert nothing == 0 < one < used(ImageLabels("Truth", boxes=BOXES, labels=LABELS))
    assert one < used(
        ImageLabels("Truth", boxes=BOXES[:1], labels=LABELS[:1], sem_seg=np.zeros((90, width), np.uint8))
    )


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], "at least one set of labels"),
        ([ImageLabels("Truth", boxes=BOXES)], "2 boxes need as many labels"),
        ([ImageLabels("P", boxes=BOXES, labels=LABELS, scores=np.ones(1))], "2 boxes need as many labels"),
        ([ImageLabels("Truth", sem_seg=np.zeros((9, 16), int))], "the mask is 16×9, the image 160×90"),
    ],
)
def test_labels_that_do_not_fit(layers, message):
    with pytest.raises(ValueError, match=message):
        draw_image_sample(GREY, layers)
    with pytest.raises(ValueError, match="uint8"):
        draw_image_sample(GREY.astype(float), [ImageLabels("x")])

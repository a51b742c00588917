"""Files of labels that are damaged, and what the messages name."""

import json

import numpy as np
import pytest
from PIL import Image

from perception.evaluation import (
    ImageBoxes,
    box_file,
    box_scores,
    count_pixels,
    list_masks,
    read_image_boxes,
    read_mask,
    read_rle_masks,
    seg_scores,
)
from perception.utils import DataError

CLASSES = ("pedestrian", "car", "truck")


def test_missing_files_and_frames_listed_twice(tmp_path):
    path = tmp_path / "det.json"
    path.write_text(json.dumps([{"name": "a.jpg"}] * 2))
    with pytest.raises(DataError, match=r"twice \[sample a.jpg\] .*det.json"):
        read_image_boxes(path)
    with pytest.raises(DataError, match="no such mask"):
        read_mask(tmp_path / "none.png", frame_name="none")
    with pytest.raises(DataError, match="no mask"):
        list_masks(tmp_path)
    assert b"".join(box_file({})) == b"[]\n"


def test_damaged_masks(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG no")
    with pytest.raises(DataError, match="cannot be read"):
        read_mask(path)
    Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8)).save(path)
    with pytest.raises(DataError, match="colormaps"):
        read_mask(path)


def test_frames_of_another_split():
    boxes = ImageBoxes(boxes=np.array([[0.0, 0.0, 9.0, 9.0]]), labels=np.array([1]), scores=np.array([1.0]))
    with pytest.raises(ValueError, match="1 predicted frames are not in the ground truth: b.jpg"):
        box_scores({"a.jpg": boxes}, {"b.jpg": boxes}, class_names=CLASSES)
    with pytest.raises(ValueError, match="none of 1 frames has a box"):
        box_scores({"a.jpg": ImageBoxes()}, {}, class_names=CLASSES)


def test_wrong_masks():
    truth = np.zeros((2, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="of 2×2 pixels, the ground truth of 3×2"):
        count_pixels(truth[:, :2], truth, 19)
    with pytest.raises(ValueError, match=r"\[19, 30\]; allowed: 0…18 and 255"):
        count_pixels(truth, np.array([[19, 30, 255], [0, 0, 0]], dtype=np.uint8), 19)
    with pytest.raises(ValueError, match="no pixel"):
        seg_scores(count_pixels(truth, truth + 255, 2), class_names=("a", "b"))


def test_run_lengths_of_another_kind(tmp_path):
    path = tmp_path / "rle.json"
    region = {"counts": "04", "size": [2, 2]}
    for found, message in (
        ({"rle": region}, "of 2×2 pixels"),
        ({"poly2d": [{}]}, "polygon and no run lengths"),
    ):
        labels = [{"id": "1", "category": "car", **found}]
        path.write_text(json.dumps([{"name": "a.jpg", "labels": labels}]))
        with pytest.raises(DataError, match=message):
            read_rle_masks(path, size=(4, 4))

"""Single images: boxes thinned out as torch's operator does it, and the segmentation."""

import numpy as np
import pytest
import torch
from mmcv.ops import batched_nms

from perception.runtime import NMS, ImagePredictor
from perception.runtime.nms import select_by_nms
from tests.runtime.toy_export import CLASSES, write_fcos


def test_boxes_and_segmentation_of_an_image(image_export):
    image = np.zeros((6, 8, 3), np.uint8)
    image[:, 4:] = 200
    found = ImagePredictor(image_export).predict(image)
    # The second box overlaps the first of its class, the third is of another; the fifth has score 0.
    assert found.names == (CLASSES[0], CLASSES[1], CLASSES[2])
    assert found.scores.tolist() == pytest.approx([0.9, 0.6, 0.3])
    assert found.boxes.tolist() == [[0, 0, 8, 8], [0, 0, 8, 9], [2, 2, 6, 6]]
    np.testing.assert_array_equal(found.seg_classes, image[..., 0] > 127)
    assert len(ImagePredictor(image_export, score_threshold=0.5).predict(image)) == 2


@pytest.mark.parametrize("batch", ["batch", 1, 2])
def test_images_of_several_sizes(tmp_path, batch):
    predictor = ImagePredictor(write_fcos(tmp_path / "e", batch=batch))
    images = [
        np.full(shape, level, np.uint8)
        for shape, level in (((4, 5, 3), 0), ((4, 5, 3), 255), ((6, 5, 3), 255))
    ]
    found = predictor.predict_batch([*images, images[0]])
    assert [(*one.seg_classes.shape, int(one.seg_classes.max())) for one in found] == [
        (4, 5, 0),
        (4, 5, 1),
        (6, 5, 1),
        (4, 5, 0),
    ]
    assert predictor.predict_batch([]) == []


def test_a_bad_image_is_named(image_export):
    good = np.zeros((4, 5, 3), np.uint8)
    with pytest.raises(ValueError, match=r"image 1 must be \(height, width, 3\), RGB, got \(4, 5\)"):
        ImagePredictor(image_export).predict_batch([good, good[..., 0]])


@pytest.mark.parametrize("seed", range(4))
def test_thinning_out_is_that_of_training(seed):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 60, (300, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(1, 40, (300, 2))], axis=1).astype(np.float32)
    scores, labels = rng.uniform(0, 1, 300).astype(np.float32), rng.integers(0, 4, 300)
    limits = NMS(iou=0.5, score=0.1, max_num=50)
    mine = select_by_nms(boxes, scores, labels, limits)
    high = np.flatnonzero(scores > limits.score)
    tensors = (torch.from_numpy(array[high]) for array in (boxes, scores, labels))
    options = {"type": "nms", "iou_threshold": limits.iou, "max_num": limits.max_num}
    _, theirs = batched_nms(*tensors, options)
    np.testing.assert_array_equal(mine, high[theirs.numpy()])


def test_empty_boxes_stay_apart():
    boxes = np.zeros((2, 4))
    kept = select_by_nms(boxes, np.array([0.5, 0.4]), np.array([0, 0]), NMS(iou=0.5, score=0.0, max_num=5))
    assert kept.tolist() == [0, 1]

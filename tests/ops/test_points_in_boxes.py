"""Points in boxes, against nuscenes-devkit."""

import numpy as np
import pytest
import torch
from mmcv.ops import points_in_boxes_cpu
from nuscenes.utils.data_classes import Box
from nuscenes.utils.geometry_utils import points_in_box
from pyquaternion import Quaternion

from perception.ops.mmcv_ext import points_in_boxes_all_forward, points_in_boxes_part_forward


def make_scene(seed=0, batch=2, num_points=400, num_boxes=6):
    rng = np.random.default_rng(seed)
    points = rng.uniform((-6, -6, -2), (6, 6, 3), (batch, num_points, 3)).astype(np.float32)
    boxes = np.concatenate(
        (
            rng.uniform(-4, 4, (batch, num_boxes, 2)),
            rng.uniform(-2, 0, (batch, num_boxes, 1)),
            rng.uniform(1, 5, (batch, num_boxes, 3)),
            rng.uniform(-7, 7, (batch, num_boxes, 1)),
        ),
        axis=-1,
    ).astype(np.float32)
    return points, boxes


def devkit_mask(points, boxes):
    masks = []
    for x, y, z, length, width, height, yaw in boxes.astype(np.float64):
        turn = Quaternion(axis=(0, 0, 1), angle=yaw)
        box = Box([x, y, z + height / 2], [width, length, height], turn)
        masks.append(points_in_box(box, points.T.astype(np.float64)))
    return np.stack(masks, axis=1)


@pytest.fixture
def scene():
    points, boxes = make_scene()
    expected = np.stack([devkit_mask(p, b) for p, b in zip(points, boxes, strict=True)])
    assert 0.01 < expected.mean() < 0.5
    return torch.from_numpy(points), torch.from_numpy(boxes), torch.from_numpy(expected)


def test_all_boxes_on_the_cpu(scene):
    points, boxes, expected = scene
    out = points_in_boxes_cpu(points, boxes)
    assert out.dtype == torch.int
    assert torch.equal(out.bool(), expected)


def test_all_boxes_of_the_device_op(scene):
    points, boxes, expected = scene
    out = torch.zeros(expected.shape, dtype=torch.int)
    points_in_boxes_all_forward(boxes, points, out)
    assert torch.equal(out.bool(), expected)


def test_first_box_wins(scene):
    points, boxes, expected = scene
    assert (expected.sum(-1) > 1).any()  # overlapping boxes occur
    out = torch.full(expected.shape[:2], -1, dtype=torch.int)
    points_in_boxes_part_forward(boxes, points, out)
    first = torch.where(expected.any(-1), expected.int().argmax(-1), -1)
    assert torch.equal(out.long(), first)


def test_faces():
    box = torch.tensor([[[0.0, 0, 0, 2, 2, 2, 0]]])
    points = torch.tensor([[[1.0, 0, 1], [0, 1.0, 1], [0, 0, 2.0], [0, 0, 0.0], [0.99, 0.99, 1.99]]])
    assert points_in_boxes_cpu(points, box).flatten().tolist() == [0, 0, 1, 1, 1]


def test_no_boxes():
    points, out = torch.rand(1, 4, 3), torch.full((1, 4), -1, dtype=torch.int)
    points_in_boxes_part_forward(torch.zeros(1, 0, 7), points, out)
    assert out.tolist() == [[-1] * 4]
    assert points_in_boxes_cpu(points, torch.zeros(1, 0, 7)).shape == (1, 4, 0)

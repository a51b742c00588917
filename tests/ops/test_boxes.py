"""Box overlaps through ``mmcv.ops``, with shapely as the oracle."""

import numpy as np
import pytest
import shapely
import shapely.affinity
import torch
from mmcv.ops import bbox_overlaps, box_iou_rotated
from mmcv.ops.iou3d import boxes_iou3d, boxes_overlap_bev


def random_boxes(count, rng, spread=4.0, centre=0.0):
    xy = centre + rng.uniform(-spread, spread, (count, 2))
    return np.concatenate((xy, rng.uniform(0.2, 5, (count, 2)), rng.uniform(-7, 7, (count, 1))), axis=1)


def polygon(box):
    x, y, w, h, angle = (float(v) for v in box)
    rectangle = shapely.affinity.rotate(
        shapely.box(-w / 2, -h / 2, w / 2, h / 2), angle, (0, 0), use_radians=True
    )
    return shapely.affinity.translate(rectangle, x, y)


def shapely_iou(boxes1, boxes2, mode="iou"):
    out = np.zeros((len(boxes1), len(boxes2)))
    for i, a in enumerate(map(polygon, boxes1)):
        for j, b in enumerate(map(polygon, boxes2)):
            common = a.intersection(b).area
            out[i, j] = common / (a.area if mode == "iof" else a.area + b.area - common)
    return out


@pytest.mark.parametrize("mode", ["iou", "iof"])
def test_rotated_iou_of_random_boxes(mode):
    rng = np.random.default_rng(0)
    boxes1, boxes2 = random_boxes(30, rng), random_boxes(40, rng)
    out = box_iou_rotated(torch.tensor(boxes1), torch.tensor(boxes2), mode=mode)
    expected = shapely_iou(boxes1, boxes2, mode)
    assert 0.2 < (expected > 0).mean() < 1  # both cases occur
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-9)


DEGENERATE = {
    "identical": ((1, 2, 3, 4, 0.3), (1, 2, 3, 4, 0.3), 1),
    "turned by half": ((1, 2, 3, 4, 0.3), (1, 2, 3, 4, 0.3 + np.pi), 1),
    "turned by a quarter": ((0, 0, 4, 2, 0), (0, 0, 2, 4, np.pi / 2), 1),
    "inside": ((0, 0, 4, 4, 0.5), (0, 0, 2, 2, 1.7), 4 / 16),
    "inside with a common edge": ((0, 0, 4, 4, 0), (1, 0, 2, 4, 0), 8 / 16),
    "cross": ((0, 0, 6, 2, 0.2), (0, 0, 2, 6, 0.2), 4 / 20),
    "octagon": ((0, 0, 2, 2, 0), (0, 0, 2, 2, np.pi / 4), 1 / np.sqrt(2)),
    "touching edges": ((0, 0, 2, 2, 0), (2, 0, 2, 2, 0), 0),
    "touching corners": ((0, 0, 2, 2, 0), (2, 2, 2, 2, 0), 0),
    "apart": ((0, 0, 2, 2, 0), (9, 0, 2, 2, 0), 0),
    "without area": ((0, 0, 0, 2, 0), (0, 0, 2, 2, 0), 0),
}


@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("centre", [0.0, 1000.0])
def test_rotated_iou_of_special_pairs(name, dtype, centre):
    first, second, expected = DEGENERATE[name]
    shift = torch.tensor([centre, -centre, 0, 0, 0], dtype=dtype)
    a, b = torch.tensor([first], dtype=dtype) + shift, torch.tensor([second], dtype=dtype) + shift
    atol = 1e-9 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(
        box_iou_rotated(a, b), torch.tensor([[expected]], dtype=dtype), atol=atol, rtol=0
    )
    torch.testing.assert_close(
        box_iou_rotated(b, a), torch.tensor([[expected]], dtype=dtype), atol=atol, rtol=0
    )


def test_nearly_equal_boxes_have_iou_near_one():
    rng = np.random.default_rng(1)
    boxes = np.repeat(random_boxes(200, rng), 2, axis=0)[:300]
    noisy = torch.tensor(boxes + rng.normal(0, 1e-7, boxes.shape)).float()
    out = box_iou_rotated(torch.tensor(boxes).float(), noisy, aligned=True)
    assert out.min() > 0.9999
    assert out.max() < 1.0001


def test_rotated_iou_orientation_flag_and_alignment():
    rng = np.random.default_rng(2)
    boxes1, boxes2 = (torch.tensor(random_boxes(9, rng)) for _ in range(2))
    full = box_iou_rotated(boxes1, boxes2)
    torch.testing.assert_close(box_iou_rotated(boxes1, boxes2, aligned=True), full.diag())
    mirror = torch.tensor([1.0, 1, 1, 1, -1], dtype=torch.float64)
    torch.testing.assert_close(box_iou_rotated(boxes1 * mirror, boxes2 * mirror, clockwise=False), full)


@pytest.mark.parametrize(("rows", "cols"), [(0, 3), (3, 0), (0, 0)])
def test_empty(rows, cols):
    assert box_iou_rotated(torch.rand(rows, 5), torch.rand(cols, 5)).shape == (rows, cols)


def test_overlap_from_above_and_in_space():
    rng = np.random.default_rng(3)
    flat = [random_boxes(8, rng) for _ in range(2)]
    boxes = [np.insert(f, [2, 4], rng.uniform(1, 2, (8, 2)), axis=1) for f in flat]  # x y z l w h yaw
    a, b = (torch.tensor(x) for x in boxes)
    overlap = np.array([[polygon(p).intersection(polygon(q)).area for q in flat[1]] for p in flat[0]])
    np.testing.assert_allclose(boxes_overlap_bev(a, b).numpy(), overlap, atol=1e-9)
    torch.testing.assert_close(boxes_iou3d(a, a).diag(), torch.ones(8, dtype=torch.float64))


@pytest.mark.parametrize("mode", ["iou", "iof"])
@pytest.mark.parametrize("offset", [0, 1])
def test_axis_aligned_overlaps(mode, offset):
    rng = np.random.default_rng(4)
    corner = rng.uniform(0, 6, (2, 12, 2))
    boxes = np.concatenate((corner, corner + rng.uniform(1, 5, corner.shape)), axis=-1)
    out = bbox_overlaps(torch.tensor(boxes[0]), torch.tensor(boxes[1]), mode=mode, offset=offset)
    grown = boxes + (0, 0, offset, offset)
    a, b = ([shapely.box(*box) for box in group] for group in grown)
    common = np.array([[p.intersection(q).area for q in b] for p in a])
    area1, area2 = np.array([p.area for p in a])[:, None], np.array([q.area for q in b])
    expected = common / (area1 if mode == "iof" else area1 + area2 - common)
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-12)
    aligned = bbox_overlaps(
        torch.tensor(boxes[0]), torch.tensor(boxes[1]), mode=mode, offset=offset, aligned=True
    )
    np.testing.assert_allclose(aligned.numpy(), expected.diagonal(), atol=1e-12)

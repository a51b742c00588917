"""Box geometry against mmdet3d's structures and against hand-made cases."""

import math

import pytest
import torch
from torch import Tensor

import perception  # noqa: F401  (supplies mmcv's compiled ops where there are none)
from perception.structures import box_corners, decode_boxes, encode_boxes, points_in_boxes


def random_boxes(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.randn(count, 9, generator=generator, dtype=torch.float64) * 10
    boxes[:, 3:6] = boxes[:, 3:6].abs() + 0.2
    boxes[:, 6] = torch.rand(count, generator=generator, dtype=torch.float64) * 2 * math.pi - math.pi
    return boxes


def test_corners_equal_mmdet3d() -> None:
    from mmdet3d.structures import LiDARInstance3DBoxes

    boxes = random_boxes(20, seed=0).float()
    expected = LiDARInstance3DBoxes(boxes, box_dim=9).corners
    torch.testing.assert_close(box_corners(boxes), expected, atol=1e-5, rtol=1e-5)


def test_last_four_corners_are_the_front() -> None:
    box = torch.tensor([[0.0, 0.0, 0.0, 4.0, 2.0, 1.5, math.pi / 2]])
    assert box_corners(box)[0, 4:, 1] == pytest.approx([2.0] * 4)


def test_points_in_boxes_equal_the_nuscenes_devkit() -> None:
    from nuscenes.utils.data_classes import Box
    from nuscenes.utils.geometry_utils import points_in_box
    from pyquaternion import Quaternion

    boxes = random_boxes(15, seed=1)
    points = torch.randn(400, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 10
    actual = points_in_boxes(points, boxes)
    assert actual.any()
    for index, (x, y, z, length, width, height, yaw) in enumerate(boxes[:, :7].tolist()):
        box = Box([x, y, z + height / 2], [width, length, height], Quaternion(axis=[0, 0, 1], radians=yaw))
        assert actual[:, index].tolist() == points_in_box(box, points.numpy().T).tolist()


@pytest.mark.parametrize(("offset", "inside"), [(1.99, True), (2.01, False)])
def test_length_lies_along_the_heading(offset: float, inside: bool) -> None:
    box = torch.tensor([[10.0, 5.0, 0.0, 4.0, 2.0, 1.5, math.pi / 2]])
    assert bool(points_in_boxes(torch.tensor([[10.0, 5.0 + offset, 0.5]]), box)) is inside


def test_code_round_trip() -> None:
    boxes = random_boxes(50, seed=3)
    torch.testing.assert_close(decode_boxes(encode_boxes(boxes)), boxes)


def test_code_layout() -> None:
    code = encode_boxes(torch.tensor([1.0, 2.0, 3.0, math.e, 1.0, 2.0, 0.0, 0.5, float("nan")]))
    assert code[:9].tolist() == pytest.approx([1, 2, 1, 0, 4, math.log(2), 0, 1, 0.5])
    assert code[9].isnan()


def test_decode_ignores_the_length_of_sin_cos() -> None:
    code = torch.zeros(10)
    code[6:8] = torch.tensor([3.0, 3.0])
    assert float(decode_boxes(code)[6]) == pytest.approx(math.pi / 4)


def test_decode_gradient() -> None:
    code = torch.randn(
        3, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(4), requires_grad=True
    )
    assert torch.autograd.gradcheck(decode_boxes, (code,))

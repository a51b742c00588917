"""Boxes between upstream's convention (mmdet3d 0.17) and today's."""

import math

from torch import Tensor

from perception.structures import decode_boxes


def convert_boxes(boxes: Tensor) -> Tensor:
    """Upstream's (x, y, z, w, l, h, yaw, vx, vy) → (x, y, z, l, w, h, −yaw − π/2, vx, vy); z stays what it is.

    Args:
        boxes: (n, 9).

    Example:
        >>> import torch
        >>> convert_boxes(torch.tensor([[0.0, 0, 0, 2, 4, 1, -math.pi / 2, 3, 0]])).tolist()
        [[0.0, 0.0, 0.0, 4.0, 2.0, 1.0, 0.0, 3.0, 0.0]]
    """
    boxes = boxes[:, [0, 1, 2, 4, 3, 5, 6, 7, 8]]
    boxes[:, 6] = -boxes[:, 6] - math.pi / 2
    return boxes


def gravity_boxes(boxes: Tensor) -> Tensor:
    """Boxes (n, 9) with z at the bottom → with z at the centre."""
    raised = boxes.clone()
    raised[:, 2] += boxes[:, 5] / 2
    return raised


def decode_gravity(codes: Tensor) -> Tensor:
    """Box codes (n, 10) → boxes (n, 9) with z at the centre."""
    return gravity_boxes(decode_boxes(codes))

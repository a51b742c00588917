"""3D boxes as tensors: corners, point membership, and the code that the box head regresses.

A box is (x, y, z, l, w, h, yaw[, vx, vy]): LiDAR frame (x right, y forward, z up), metres, z at the *bottom*, l along
the heading, yaw counter-clockwise from x in radians, velocity in m/s. It is the layout of mmdet3d's
`LiDARInstance3DBoxes.tensor`.
"""

import torch
from torch import Tensor

CODE_SIZE = 10
"""Length of the regression code (cx, cy, log l, log w, cz, log h, sin yaw, cos yaw, vx, vy)."""

_CORNER_SIGNS = (
    (-1, -1, 0),
    (-1, -1, 1),
    (-1, 1, 1),
    (-1, 1, 0),
    (1, -1, 0),
    (1, -1, 1),
    (1, 1, 1),
    (1, 1, 0),
)


def box_corners(boxes: Tensor) -> Tensor:
    """Corners of boxes, in mmdet3d's order (the last four are the front face, at +l/2).

    Args:
        boxes: (n, 7 or more), bottom-centre boxes.

    Returns:
        (n, 8, 3), LiDAR frame, metres.
    """
    signs = torch.tensor(_CORNER_SIGNS, dtype=boxes.dtype, device=boxes.device)
    scale = torch.tensor([0.5, 0.5, 1.0], dtype=boxes.dtype, device=boxes.device)
    local = boxes[:, None, 3:6] * signs * scale  # (n, 8, 3)
    cos, sin = boxes[:, 6].cos()[:, None], boxes[:, 6].sin()[:, None]
    x = cos * local[..., 0] - sin * local[..., 1]
    y = sin * local[..., 0] + cos * local[..., 1]
    return torch.stack([x, y, local[..., 2]], dim=-1) + boxes[:, None, :3]


def points_in_boxes(points: Tensor, boxes: Tensor) -> Tensor:
    """Which points lie in which boxes, borders included.

    Args:
        points: (p, 3), LiDAR frame, metres.
        boxes: (n, 7 or more), bottom-centre boxes.

    Returns:
        (p, n), bool.
    """
    offset = points[:, None, :] - boxes[None, :, :3]  # (p, n, 3)
    cos, sin = boxes[:, 6].cos(), boxes[:, 6].sin()
    along = cos * offset[..., 0] + sin * offset[..., 1]
    across = -sin * offset[..., 0] + cos * offset[..., 1]
    height = offset[..., 2]
    inside_plane = (along.abs() <= boxes[:, 3] / 2) & (across.abs() <= boxes[:, 4] / 2)
    return inside_plane & (height >= 0) & (height <= boxes[:, 5])


def encode_boxes(boxes: Tensor) -> Tensor:
    """Boxes → regression targets.

    *Source*: BEVFormer's `normalize_bbox`, in today's convention: upstream's code has (log w, log l) and
    (sin, cos) of −yaw − π/2; ours are (log l, log w) and (sin, cos) of yaw.

    Args:
        boxes: (..., 9), bottom-centre boxes with velocity (NaN where unknown).

    Returns:
        (..., 10): (cx, cy, log l, log w, cz, log h, sin yaw, cos yaw, vx, vy), cz at the box's *centre*.
    """
    x, y, bottom, length, width, height, yaw, vx, vy = boxes.unbind(-1)
    centre = bottom + height / 2
    return torch.stack(
        [x, y, length.log(), width.log(), centre, height.log(), yaw.sin(), yaw.cos(), vx, vy], dim=-1
    )


def decode_boxes(code: Tensor) -> Tensor:
    """Regression code → boxes; the inverse of `encode_boxes`.

    Args:
        code: (..., 10), as `encode_boxes` returns it; (sin, cos) need not have length 1.

    Returns:
        (..., 9), bottom-centre boxes, yaw in (−π, π].
    """
    x, y, log_length, log_width, centre, log_height, sin, cos, vx, vy = code.unbind(-1)
    height = log_height.exp()
    return torch.stack(
        [
            x,
            y,
            centre - height / 2,
            log_length.exp(),
            log_width.exp(),
            height,
            torch.atan2(sin, cos),
            vx,
            vy,
        ],
        dim=-1,
    )

"""Bringing the previous BEV into the current frame.

Legend: B batch, Q = bev_h · bev_w cells (row-major), C channels.
"""

import torch
from torch import Tensor

from perception.structures import BEVGrid
from perception.structures.ego_motion import TRANSLATION, YAW_CHANGE_DEGREES


def lidar_origin_pixel(grid: BEVGrid) -> tuple[float, float]:
    """(x, y) of the LiDAR's origin in cells from the grid's corner; the centre of a grid that is symmetric."""
    dx, dy = grid.cell_size
    return -grid.pc_range[0] / dx, -grid.pc_range[1] / dy


def rotate_bev(
    bev: Tensor, angle_deg: Tensor, grid: BEVGrid, center: tuple[float, float] | None = None
) -> Tensor:
    """Turn a BEV by whole cells: each output cell takes its nearest input cell, zero from outside the grid.

    *Source*: BEVFormer, `get_bev_features`. Output cell (r, c) reads R·((c+½, r+½) − centre) + centre − ½, rounded
    half to even, with R = [[cos, −sin], [sin, cos]]. Deviations: the angle is each sample's own, the input is left
    alone, and by default the turn is one in metres about the vehicle. Upstream turns about cell (100, 100) whatever
    the grid, and in cells, which distorts cells that are not square; a given `center` asks for that.

    Args:
        bev: (B, Q, C).
        angle_deg: (B,), change of heading since that BEV, degrees.
        grid: the BEV grid.
        center: (x, y) in cells, about which to turn as upstream does; None: about the LiDAR's origin, which is the
            middle of a symmetric grid, in metres.

    Returns:
        (B, Q, C).
    """
    center_x, center_y = lidar_origin_pixel(grid) if center is None else center
    aspect = grid.cell_size[1] / grid.cell_size[0] if center is None else 1.0
    with torch.autocast(bev.device.type, enabled=False):
        # In float64: libraries differ in the last bit of a float32 cosine, and so in the cell that is nearest.
        angle = angle_deg.double().deg2rad()[:, None, None]
        cos, sin = angle.cos().float(), angle.sin().float()
        x = torch.arange(grid.bev_w, device=bev.device) + 0.5 - center_x
        y = (torch.arange(grid.bev_h, device=bev.device) + 0.5 - center_y)[:, None]
        column = (cos * x - sin * aspect * y + center_x - 0.5).round().long()  # (B, bev_h, bev_w)
        row = (sin / aspect * x + cos * y + center_y - 0.5).round().long()
    inside = (column >= 0) & (column < grid.bev_w) & (row >= 0) & (row < grid.bev_h)
    source = torch.where(inside, row * grid.bev_w + column, 0).flatten(1)  # (B, Q)
    rotated = bev.gather(1, source[..., None].expand_as(bev))
    return rotated * inside.flatten(1)[..., None]


def clear_motion(ego_motion: Tensor, has_prev: Tensor) -> Tensor:
    """Zero the change since the previous frame where there is none.

    Args:
        ego_motion: (B, 18).
        has_prev: (B,), bool.

    Returns:
        (B, 18); absolute heading, pose and CAN entries are kept.
    """
    cleared = ego_motion.clone()
    cleared[:, TRANSLATION] = 0
    cleared[:, YAW_CHANGE_DEGREES] = 0
    return torch.where(has_prev[:, None], ego_motion, cleared)

"""Where each BEV cell's pillar lands in each camera, and which cameras see it.

Legend: B batch, N cameras, Q BEV cells, D points per pillar, M cameras that a cell looks into.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from perception.structures import MIN_DEPTH, BEVGrid

# An unused slot samples ten image widths away, where every map is zero.
_OUTSIDE = -10.0


@dataclass(frozen=True)
class CameraPlan:
    """Which cameras each BEV cell looks into, shared by all encoder layers of one forward.

    reference_points: (B, Q, M, D, 2), (u, v) as a fraction of the padded image; far outside where the slot is unused.
    camera_idx: (B, Q, M), int64, the camera of each slot.
    weight: (B, Q, M), 1 / (number of cameras that see the cell) for a used slot, else 0.
    """

    reference_points: Tensor
    camera_idx: Tensor
    weight: Tensor


def pillar_points(grid: BEVGrid, num_points: int) -> Tensor:
    """Points on the vertical axis of every BEV cell.

    *Source*: BEVFormer §3.3; heights as upstream spaces them: linspace(0.5, Z − 0.5, D) metres above z_min.

    Args:
        grid: the BEV grid.
        num_points: D.

    Returns:
        (Q, D, 3), LiDAR frame, metres.
    """
    centres = torch.tensor(grid.centres()).reshape(-1, 1, 2).expand(-1, num_points, -1)  # (Q, D, 2)
    heights = grid.pc_range[2] + torch.linspace(0.5, grid.extent[2] - 0.5, num_points, dtype=torch.float64)
    heights = heights.reshape(1, -1, 1).expand(len(centres), -1, -1)
    return torch.cat([centres, heights], dim=-1).float()


def project_pillars(points: Tensor, lidar2img: Tensor, image_shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Project pillars into all cameras, always in float32.

    Args:
        points: (Q, D, 3), LiDAR frame, metres.
        lidar2img: (B, N, 4, 4), LiDAR metres → pixels of the network's input image.
        image_shape: (height, width) of the input image with padding, pixels.

    Returns:
        reference_points: (B, N, Q, D, 2), (u / width, v / height); huge where the point is not in front.
        mask: (B, N, Q, D), bool, in front of the camera and strictly inside the image.
    """
    with torch.autocast(points.device.type, enabled=False):
        x, y, z = points.float().unbind(dim=-1)  # (Q, D) each
        rows = lidar2img.float()[..., None, None].unbind(dim=2)  # 4 × (B, N, 4, 1, 1)
        # No product of matrices: libraries add in different orders, and the last bit may decide what a camera sees.
        u, v, depth = (
            x * row[:, :, 0] + y * row[:, :, 1] + z * row[:, :, 2] + row[:, :, 3] for row in rows[:3]
        )  # (B, N, Q, D) each
    height, width = image_shape
    in_front = depth.clamp(min=MIN_DEPTH)
    u, v = u / in_front / width, v / in_front / height
    mask = (depth > MIN_DEPTH) & (u > 0) & (u < 1) & (v > 0) & (v < 1)
    return torch.stack([u, v], dim=-1), mask


def plan_cameras(
    reference_points: Tensor,
    mask: Tensor,
    *,
    max_cameras_per_cell: int | None = None,
    first_sample: bool = False,
) -> CameraPlan:
    """List the cameras that see each cell.

    All shapes are constants, and nothing waits for the device. Where a cell is seen by more cameras than it has slots,
    a CPU raises ValueError, CUDA a device-side assertion at its next synchronisation, and an exported graph, which has
    no errors, gives the cell the weight NaN. *Deviation* from upstream, which gathers the cells of each camera by
    `nonzero`, sample by sample.

    Args:
        reference_points: (B, N, Q, D, 2).
        mask: (B, N, Q, D), bool.
        max_cameras_per_cell: M; None: N, enough for any rig.
        first_sample: a camera of any sample serves the cells that the first sample's sees, as upstream; they are still
            divided by the sample's own number of cameras.

    Raises:
        ValueError: on a CPU, a cell is seen by more than M cameras.
    """
    batch, num_cams = mask.shape[:2]
    visible = mask.any(dim=-1)  # (B, N, Q)
    hits = visible.sum(dim=1).clamp(min=1)  # (B, Q)
    if first_sample:
        visible = visible[:1].expand(batch, -1, -1)
    if max_cameras_per_cell is None or max_cameras_per_cell >= num_cams:
        used, points = visible, reference_points
        camera_idx = torch.arange(num_cams, device=mask.device).expand(batch, mask.shape[2], -1)
    else:
        turn = visible.cumsum(dim=1)  # (B, N, Q): 1 at the first camera that sees the cell, 2 at the second
        if torch.compiler.is_exporting():
            hits = torch.where(turn[:, -1] > max_cameras_per_cell, torch.nan, hits)
        else:
            _check_slots(turn[:, -1], max_cameras_per_cell)
        slots = torch.arange(1, max_cameras_per_cell + 1, device=mask.device)[:, None, None]
        chosen = visible[:, None] & (turn[:, None] == slots)  # (B, M, N, Q)
        used = chosen.any(dim=2)  # (B, M, Q)
        found = chosen.byte().argmax(dim=2)
        points = reference_points.gather(1, found[..., None, None].expand(-1, -1, -1, *mask.shape[3:], 2))
        camera_idx = found.transpose(1, 2)
    points = torch.where(used[..., None, None], points, _OUTSIDE)  # (B, M, Q, D, 2)
    weight = used / hits[:, None]
    return CameraPlan(points.transpose(1, 2), camera_idx, weight.transpose(1, 2))


def _check_slots(num_seen_by: Tensor, num_slots: int) -> None:
    remedy = (
        f"Set model.bev_encoder.max_cameras_per_cell, now {num_slots}, to what the rig needs, or None (all)"
    )
    if num_seen_by.is_cuda or torch.compiler.is_compiling():
        # Reading the number would make the host wait for the device.
        torch._assert_async(
            (num_seen_by <= num_slots).all(), f"a BEV cell is seen by too many cameras. {remedy}"
        )
    elif int(num_seen_by.max()) > num_slots:
        raise ValueError(f"a BEV cell is seen by {int(num_seen_by.max())} cameras. {remedy}")

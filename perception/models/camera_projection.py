"""Where each BEV cell's pillar lands in each camera, and which cells a camera sees.

Legend: B batch, N cameras, Q BEV cells, D points per pillar, K padded number of visible cells per camera.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from perception.structures import MIN_DEPTH, BEVGrid


@dataclass(frozen=True)
class CameraPlan:
    """Which BEV query is sampled in which camera, shared by all encoder layers of one forward.

    reference_points: (B·N, K, D, 2), (u, v) as a fraction of the padded image; 0 where the slot is padding.
    query_idx: (B, N·K), int64, the BEV query of each slot; 0 where padding. None: slot k is query k, K = Q.
    weight: (B, N·K, 1), 1 / (number of cameras that see the query) for a used slot, 0 for padding.
    """

    reference_points: Tensor
    query_idx: Tensor | None
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
        matrix = lidar2img.float()
        flat = points.float().reshape(-1, 3)
        image = flat @ matrix[..., :3, :3].transpose(-1, -2) + matrix[..., None, :3, 3]  # (B, N, Q·D, 3)
    height, width = image_shape
    depth = image[..., 2:]
    uv = image[..., :2] / depth.clamp(min=MIN_DEPTH) / image.new_tensor([width, height])
    mask = (depth[..., 0] > MIN_DEPTH) & ((uv > 0) & (uv < 1)).all(dim=-1)
    shape = (*lidar2img.shape[:2], *points.shape[:2])
    return uv.reshape(*shape, 2), mask.reshape(shape)


def plan_cameras(
    reference_points: Tensor, mask: Tensor, *, static: bool = False, first_sample: bool = False
) -> CameraPlan:
    """Gather the visible queries of every camera of every sample.

    One host synchronisation (for K) per call. With `static` none: every camera gets all queries, and the unseen ones
    weigh 0; the shapes are then constants, as export needs.

    Args:
        reference_points: (B, N, Q, D, 2).
        mask: (B, N, Q, D), bool.
        static: use all queries.
        first_sample: a camera of any sample gets the queries that the first sample's sees, as upstream; they are still
            divided by the sample's own number of cameras.
    """
    batch, num_cams, num_query, num_points, _ = reference_points.shape
    visible = mask.any(dim=-1)  # (B, N, Q)
    hits = visible.sum(dim=1).clamp(min=1)  # (B, Q)
    if first_sample:
        visible = visible[:1].expand(batch, -1, -1)
    if static:
        weight = visible / hits[:, None]  # (B, N, Q)
        inside = torch.where(visible[..., None, None], reference_points, 0.0)
        return CameraPlan(inside.flatten(0, 1), None, weight.reshape(batch, -1, 1))
    capacity = max(int(visible.sum(dim=-1).max()), 1)  # K; the one host synchronisation
    query_idx = visible.byte().argsort(dim=-1, descending=True, stable=True)[..., :capacity]  # (B, N, K)
    used = visible.gather(-1, query_idx)
    query_idx = torch.where(used, query_idx, 0)
    gather_idx = query_idx[..., None, None].expand(-1, -1, -1, num_points, 2)
    gathered = torch.where(
        used[..., None, None], reference_points.gather(2, gather_idx), 0.0
    )  # (B, N, K, D, 2)
    flat_idx = query_idx.flatten(1)  # (B, N·K)
    weight = used.flatten(1) / hits.gather(1, flat_idx)
    return CameraPlan(gathered.flatten(0, 1), flat_idx, weight[..., None])

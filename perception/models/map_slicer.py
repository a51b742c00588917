"""Sampling the BEV features at the pixels of the map, both in the LiDAR frame."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perception.structures import BEVGrid, MapGrid


class MapSlicer(nn.Module):
    """Bilinear samples of the BEV at the centre of every map pixel.

    Both grids know where their cells lie in LiDAR metres, so there is no flip or transpose to choose, and no offset.
    (Upstream flips by trial, and draws the map around the ego's origin: 0.94 m off.) Beyond the outermost cell
    centres the border value continues.

    Args:
        bev_grid: of the features.
        map_grid: of the target.
    """

    def __init__(self, *, bev_grid: BEVGrid, map_grid: MapGrid) -> None:
        super().__init__()
        self.bev_grid = bev_grid
        low = torch.tensor(bev_grid.pc_range[:2], dtype=torch.float64)
        extent = torch.tensor(bev_grid.extent[:2], dtype=torch.float64)
        fraction = (torch.from_numpy(map_grid.centres()) - low) / extent  # (rows, columns, 2), 0..1
        self.register_buffer("locations", (2 * fraction - 1).float(), persistent=False)
        self.locations: Tensor

    def forward(self, bev: Tensor) -> Tensor:
        """(B, C, bev_h, bev_w) → (B, C, rows, columns)."""
        locations = self.locations[None].expand(len(bev), -1, -1, -1)
        with torch.autocast(bev.device.type, enabled=False):
            sampled = F.grid_sample(
                bev.to(locations.dtype), locations, padding_mode="border", align_corners=False
            )
        return sampled.to(bev.dtype)

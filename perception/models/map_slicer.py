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

    *Source*: Bin-ze/BEVFormer_segmentation_detection's `BevFeatureSlicer`.

    Args:
        bev_grid: of the features.
        map_grid: of the target.
        divisors: `UpstreamCompat.map_divisors`.
    """

    def __init__(
        self, *, bev_grid: BEVGrid, map_grid: MapGrid, divisors: tuple[float, float] | None = None
    ) -> None:
        super().__init__()
        self.bev_grid = bev_grid
        centres = torch.tensor(map_grid.centres())  # (rows, columns, 2), metres
        if divisors is None:
            low, extent = (torch.tensor(pair[:2]).double() for pair in (bev_grid.pc_range, bev_grid.extent))
            # Kept between the outermost cells' centres, where the border continues and zeros beyond do not matter.
            outermost = 1 - torch.tensor([1 / bev_grid.bev_w, 1 / bev_grid.bev_h]).double()
            locations = (2 * (centres - low) / extent - 1).clamp(-outermost, outermost)
        else:
            # Upstream's BEV is transposed and flipped along x, and its positions are divided in float32.
            transposed = (centres * torch.tensor([-1.0, 1.0])).flip(-1).float()
            locations = transposed / torch.tensor(divisors[::-1])
        self.register_buffer("locations", locations.float(), persistent=False)
        self._follows_upstream = divisors is not None
        self.locations: Tensor

    def forward(self, bev: Tensor) -> Tensor:
        """(B, C, bev_h, bev_w) → (B, C, rows, columns)."""
        locations = self.locations[None].expand(bev.shape[0], -1, -1, -1)
        with torch.autocast(bev.device.type, enabled=False):
            features = bev.to(locations.dtype)
            if self._follows_upstream:
                sampled = F.grid_sample(features.transpose(2, 3).flip(2), locations, align_corners=True)
            else:
                sampled = F.grid_sample(features, locations, align_corners=False)
        return sampled.to(bev.dtype)

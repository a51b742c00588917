"""Segmentation by the box head's decoder: one query per patch of the BEV, and a small network of deconvolutions.

Legend: B batch, P patches, C channels, K classes.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn

from perception.models.extra_queries import Attention, ExtraQueries
from perception.models.map_head import MapHead
from perception.models.upstream_compat import UpstreamCompat
from perception.registry import MODELS
from perception.structures import MAP_CLASSES, BEVGrid, MapGrid


@MODELS.register_module()
class PatchSegHead(MapHead):
    """The segmentation half of BEVFormer-Unified.

    *Source*: wPCGrad (Bohn et al. 2024), section 4: "we remove the segmentation decoder from BEVFormer-Small and
    instead extend the set of queries passed to the remaining decoder to also cover the segmentation task, with each
    additional query encoding the segmentation of a patch in the BEV plane. To obtain the final BEV segmentation in the
    end, these patches are rearranged in a 2D grid and upsampled using a small network of deconvolutions."

    What the paper leaves open, and what is done here:

    - *Patch size*: `patch_size` metres, a power of two times the map's pixel, so that each deconvolution doubles the
      grid. BEVFormer-Unified has 5.12 m: 20 × 20 = 400 patches of 16 × 16 pixels of 0.32 m over ±51.2 m, beside 900 box
      queries. Half of it would be 1,600 patches and 3.7 times the cost of self-attention, which speaks against a model
      meant to be smaller; twice, 1,024 pixels out of each 256-channel query.
    - *Query embedding*: learned position and content per patch, as a box query has. A patch's place enters by its
      reference point, its centre; unlike those of boxes it is not refined by the layers, since patches don't move.
    - *Attention mask*: none by default: box and patch queries see each other in the self-attention of each layer, the
      purpose of one decoder ("to leverage more synergies between the tasks"). With query groups, patches see the first
      group only, and all groups see the patches. `attention="separate"` keeps both kinds apart.
    - *Upsampler*: per doubling a transposed convolution of 4 × 4 (a multiple of its stride, so no checkerboard; it
      reads across the patches' borders, so lines continue), group norm (at one sample per GPU batch norms see other
      statistics in training than at inference) and ReLU, channels halved down to 32 at least; then a 1 × 1 convolution.
    - *Loss*: on the last layer only; a map per layer would cost the upsampler each time. Same loss as `SegHead`.

    Args:
        pc_range: (x_min, y_min, z_min, x_max, y_max, z_max) of the BEV, LiDAR frame, metres.
        bev_h: rows of the BEV grid.
        bev_w: columns of the BEV grid.
        map_x_range: (x_min, x_max) of the map, LiDAR frame, metres; a whole number of patches.
        map_y_range: (y_min, y_max) of the map, likewise.
        map_resolution: side of a map pixel, metres.
        patch_size: side of a patch, metres: 2, 4, 8, … times the resolution.
        embed_dims: C, channels of the decoder.
        num_classes: K, with the background, which is class 0.
        attention: between box and patch queries, "joint" or "separate".
        class_weights: one per class, in the cross-entropy.
        loss_ce_weight: factor of the cross-entropy.
        loss_dice_weight: factor of the dice loss; 0 leaves it out.
        upstream_compat: taken from the model and unused: upstream has no such head.

    Raises:
        ValueError: the patches don't fill the map, their size is no power of two of pixels, an unknown `attention`, or
            as `MapHead`.

    Example:
        >>> head = PatchSegHead(
        ...     pc_range=(-16, -32, -5, 16, 32, 3), bev_h=16, bev_w=8, embed_dims=16, map_x_range=(-16.0, 16.0),
        ...     map_y_range=(-32.0, 32.0), map_resolution=1.0, patch_size=8.0
        ... )
        >>> head.queries().embedding.shape, head(torch.zeros(2, 32, 16)).shape
        (torch.Size([32, 32]), torch.Size([2, 4, 32, 64]))
    """

    def __init__(
        self,
        *,
        pc_range: Sequence[float],
        bev_h: int,
        bev_w: int,
        map_x_range: tuple[float, float],
        map_y_range: tuple[float, float],
        map_resolution: float,
        patch_size: float,
        embed_dims: int = 256,
        num_classes: int = len(MAP_CLASSES),
        attention: Attention = "joint",
        class_weights: Sequence[float] = (0.3, 2.0, 2.0, 2.0),
        loss_ce_weight: float = 3.0,
        loss_dice_weight: float = 0.0,
        upstream_compat: UpstreamCompat | Mapping[str, Any] | None = None,
    ) -> None:
        if attention not in get_args(Attention):
            raise ValueError(f"attention must be one of {list(get_args(Attention))}, got {attention!r}.")
        super().__init__(
            grid=BEVGrid.from_range(pc_range, bev_h, bev_w),
            map_grid=MapGrid(map_x_range, map_y_range, map_resolution),
            embed_dims=embed_dims,
            num_classes=num_classes,
            class_weights=class_weights,
            loss_ce_weight=loss_ce_weight,
            loss_dice_weight=loss_dice_weight,
        )
        patches = _patch_grid(self.map_grid, patch_size)
        self.attention = attention
        self.patch_shape = patches.shape
        doublings = round(math.log2(patch_size / map_resolution))
        low = torch.tensor(self.grid.pc_range[:2], dtype=torch.float64)
        extent = torch.tensor(self.grid.extent[:2], dtype=torch.float64)
        centres = torch.from_numpy(patches.centres()).flatten(0, 1)  # (P, 2), metres, in the map's order
        self.register_buffer("reference_points", ((centres - low) / extent).float(), persistent=False)
        self.reference_points: Tensor
        self.query_embedding = nn.Embedding(len(centres), 2 * embed_dims)
        self.upsample = _upsampler(embed_dims, num_classes, doublings)

    def queries(self) -> ExtraQueries:
        """What the decoder is given beside the box queries."""
        return ExtraQueries(self.query_embedding.weight, self.reference_points, self.attention)

    def forward(self, states: Tensor) -> Tensor:
        """(B, P, C), the patch queries after the decoder → (B, K, rows, columns), logits on the map grid."""
        grid = states.transpose(1, 2).unflatten(2, self.patch_shape)  # (B, C, patch rows, patch columns)
        return self.upsample(grid)


def _patch_grid(map_grid: MapGrid, patch_size: float) -> MapGrid:
    ratio = patch_size / map_grid.resolution
    if ratio < 2 or not math.isclose(2 ** round(math.log2(ratio)), ratio, rel_tol=1e-6):
        raise ValueError(
            f"patch_size must be 2, 4, 8, … times map_resolution = {map_grid.resolution} m, got {patch_size} m, i.e. "
            f"{ratio:g} pixels."
        )
    rows, columns = (size / round(ratio) for size in map_grid.shape)
    if rows % 1 or columns % 1:
        raise ValueError(
            f"the map (x {map_grid.x_range}, y {map_grid.y_range}) must be a whole number of patches of {patch_size} m "
            f"each way, got {rows:g} × {columns:g}. Change patch_size, or the map's range."
        )
    return MapGrid(map_grid.x_range, map_grid.y_range, patch_size)


def _upsampler(embed_dims: int, num_classes: int, doublings: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = embed_dims
    for _ in range(doublings):
        width = max(channels // 2, min(channels, 32))
        layers += [
            nn.ConvTranspose2d(channels, width, 4, stride=2, padding=1, bias=False),
            nn.GroupNorm(math.gcd(8, width), width),
            nn.ReLU(inplace=True),
        ]
        channels = width
    return nn.Sequential(*layers, nn.Conv2d(channels, num_classes, 1))

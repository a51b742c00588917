"""The BEV segmentation head: BEV features to map classes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from perception.models.map_head import MapHead
from perception.models.map_slicer import MapSlicer
from perception.models.seg_encode import SegEncode
from perception.models.upstream_compat import UpstreamCompat
from perception.registry import MODELS
from perception.structures import MAP_CLASSES, BEVGrid, MapGrid


@MODELS.register_module()
class SegHead(MapHead):
    """Samples the BEV at the map's pixels, then a small U-Net.

    *Source*: Bin-ze/BEVFormer_segmentation_detection. Options of ours, all off by default: another width, a coarser
    U-Net, channel reduction, dice loss.

    Args:
        pc_range: (x_min, y_min, z_min, x_max, y_max, z_max) of the BEV, LiDAR frame, metres.
        bev_h: rows of the BEV grid.
        bev_w: columns of the BEV grid.
        embed_dims: C, channels of the BEV.
        map_x_range: (x_min, x_max) of the map, LiDAR frame, metres.
        map_y_range: (y_min, y_max) of the map, LiDAR frame, metres.
        map_resolution: side of a map pixel, metres.
        num_classes: classes with the background, which is class 0.
        width: channels of the U-Net's first stage.
        output_stride: the U-Net works at this many times the map's resolution and its logits are interpolated.
        reduce_dims: channels to which a 1×1 convolution brings the BEV before sampling; None: no such layer.
        class_weights: one per class, in the cross-entropy.
        loss_ce_weight: factor of the cross-entropy.
        loss_dice_weight: factor of the dice loss; 0 leaves it out.
        upstream_compat: switches of `UpstreamCompat`; None: all off.

    Raises:
        ValueError: `class_weights` does not fit `num_classes`, or the map reaches beyond the BEV.
    """

    def __init__(
        self,
        *,
        pc_range: Sequence[float],
        bev_h: int,
        bev_w: int,
        embed_dims: int = 256,
        map_x_range: tuple[float, float] = (-15.0, 15.0),
        map_y_range: tuple[float, float] = (-30.0, 30.0),
        map_resolution: float = 0.15,
        num_classes: int = len(MAP_CLASSES),
        width: int = 64,
        output_stride: int = 1,
        reduce_dims: int | None = None,
        class_weights: Sequence[float] = (0.3, 2.0, 2.0, 2.0),
        loss_ce_weight: float = 3.0,
        loss_dice_weight: float = 0.0,
        upstream_compat: UpstreamCompat | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            grid=BEVGrid.from_range(pc_range, bev_h, bev_w),
            map_grid=MapGrid(map_x_range, map_y_range, map_resolution),
            embed_dims=embed_dims,
            num_classes=num_classes,
            class_weights=class_weights,
            loss_ce_weight=loss_ce_weight,
            loss_dice_weight=loss_dice_weight,
        )
        self.reduce = None if reduce_dims is None else nn.Conv2d(embed_dims, reduce_dims, 1)
        inner_grid = MapGrid(map_x_range, map_y_range, map_resolution * output_stride)
        divisors = UpstreamCompat.read(upstream_compat).map_divisors
        self.slicer = MapSlicer(bev_grid=self.grid, map_grid=inner_grid, divisors=divisors)
        self.seg_encode = SegEncode(
            in_channels=embed_dims if reduce_dims is None else reduce_dims,
            num_classes=num_classes,
            width=width,
        )

    def forward(self, bev: Tensor) -> Tensor:
        """(B, bev_h·bev_w, C) → (B, num_classes, rows, columns), logits on the map grid."""
        features = bev.transpose(1, 2).unflatten(
            2, (self.grid.bev_h, self.grid.bev_w)
        )  # (B, C, bev_h, bev_w)
        if self.reduce is not None:
            features = self.reduce(features)
        logits = self.seg_encode(self.slicer(features))
        if logits.shape[-2:] == self.map_grid.shape:
            return logits
        return F.interpolate(logits, size=self.map_grid.shape, mode="bilinear", align_corners=False)

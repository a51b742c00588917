"""The BEV segmentation head: BEV features to map classes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perception.models.map_slicer import MapSlicer
from perception.models.seg_encode import SegEncode
from perception.models.seg_losses import IGNORE, cross_entropy, dice_loss
from perception.models.upstream_compat import UpstreamCompat
from perception.registry import MODELS
from perception.structures import MAP_CLASSES, BEVGrid, MapGrid


@MODELS.register_module()
class SegHead(nn.Module):
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
        super().__init__()
        if len(class_weights) != num_classes:
            raise ValueError(
                f"class_weights must have num_classes = {num_classes} numbers, got {list(class_weights)}."
            )
        self.grid = BEVGrid.from_range(pc_range, bev_h, bev_w)
        x_min, y_min, z_min, x_max, y_max, z_max = self.grid.pc_range
        self.map_grid = MapGrid(map_x_range, map_y_range, map_resolution)
        if (
            map_x_range[0] < x_min
            or map_x_range[1] > x_max
            or map_y_range[0] < y_min
            or map_y_range[1] > y_max
        ):
            raise ValueError(
                f"the map (x {map_x_range}, y {map_y_range}) reaches beyond the BEV range {tuple(pc_range)}. Shrink "
                "map_x_range and map_y_range, or widen pc_range."
            )
        self.embed_dims = embed_dims
        self.loss_ce_weight = loss_ce_weight
        self.loss_dice_weight = loss_dice_weight
        self.reduce = None if reduce_dims is None else nn.Conv2d(embed_dims, reduce_dims, 1)
        inner_grid = MapGrid(map_x_range, map_y_range, map_resolution * output_stride)
        divisors = UpstreamCompat.read(upstream_compat).map_divisors
        self.slicer = MapSlicer(bev_grid=self.grid, map_grid=inner_grid, divisors=divisors)
        self.seg_encode = SegEncode(
            in_channels=embed_dims if reduce_dims is None else reduce_dims,
            num_classes=num_classes,
            width=width,
        )
        self.register_buffer("class_weights", torch.tensor(list(class_weights)), persistent=False)
        self.class_weights: Tensor

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

    def loss(self, logits: Tensor, targets: Sequence[Tensor | None]) -> dict[str, Tensor]:
        """Losses over the samples that have a map; an empty dict where none has.

        Args:
            logits: of `forward`.
            targets: per sample (rows, columns), int64, 255 = ignored; None without a map.

        Raises:
            ValueError: a target's shape is not the map grid's.
        """
        present = [i for i, target in enumerate(targets) if target is not None]
        for sample_idx in present:
            found = tuple(targets[sample_idx].shape)  # type: ignore[union-attr]
            if found != self.map_grid.shape:
                raise ValueError(
                    f"gt_bev_seg must be {self.map_grid.shape} (rows, columns) for the head's map grid, got {found}. "
                    "Give the dataset the same map_x_range, map_y_range and map_resolution as seg_head."
                )
        maps = [target for target in targets if target is not None]
        if not maps or not any((target != IGNORE).any() for target in maps):
            return {}
        chosen = logits[present].float()
        target = torch.stack(maps).to(logits.device)
        losses = {"seg.loss_ce": cross_entropy(chosen, target, self.class_weights) * self.loss_ce_weight}
        if self.loss_dice_weight:
            losses["seg.loss_dice"] = dice_loss(chosen, target) * self.loss_dice_weight
        losses["seg.num_targets"] = (target != IGNORE).sum()
        return losses

    def predict(self, logits: Tensor) -> Tensor:
        """(B, num_classes, rows, columns) → (B, rows, columns), int64, the likeliest class."""
        return logits.argmax(dim=1)

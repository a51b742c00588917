"""What the segmentation heads share: the map's grid, their losses, their prediction."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from perception.models.seg_losses import IGNORE, cross_entropy, dice_loss
from perception.structures import BEVGrid, MapGrid


class MapHead(nn.Module):
    """Base of the segmentation heads.

    Args:
        grid: of the BEV.
        map_grid: of the logits and the target; within the BEV's range.
        embed_dims: C, channels of the BEV.
        num_classes: classes with the background, which is class 0.
        class_weights: one per class, in the cross-entropy.
        loss_ce_weight: factor of the cross-entropy.
        loss_dice_weight: factor of the dice loss; 0 leaves it out.

    Raises:
        ValueError: `class_weights` does not fit `num_classes`, or the map reaches beyond the BEV.
    """

    def __init__(
        self,
        *,
        grid: BEVGrid,
        map_grid: MapGrid,
        embed_dims: int,
        num_classes: int,
        class_weights: Sequence[float],
        loss_ce_weight: float,
        loss_dice_weight: float,
    ) -> None:
        super().__init__()
        if len(class_weights) != num_classes:
            raise ValueError(
                f"class_weights must have num_classes = {num_classes} numbers, got {list(class_weights)}."
            )
        x_min, y_min, _, x_max, y_max, _ = grid.pc_range
        (left, right), (back, front) = map_grid.x_range, map_grid.y_range
        if left < x_min or right > x_max or back < y_min or front > y_max:
            raise ValueError(
                f"the map (x {map_grid.x_range}, y {map_grid.y_range}) reaches beyond the BEV range {grid.pc_range}. "
                "Shrink map_x_range and map_y_range, or widen pc_range."
            )
        self.grid = grid
        self.map_grid = map_grid
        self.embed_dims = embed_dims
        self.num_classes = num_classes
        self.loss_ce_weight = loss_ce_weight
        self.loss_dice_weight = loss_dice_weight
        self.register_buffer("class_weights", torch.tensor(list(class_weights)), persistent=False)
        self.class_weights: Tensor

    def loss(self, logits: Tensor, targets: Sequence[Tensor | None]) -> dict[str, Tensor]:
        """Losses over the samples that have a map; an empty dict where none has.

        Args:
            logits: (B, num_classes, rows, columns), on the map grid.
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

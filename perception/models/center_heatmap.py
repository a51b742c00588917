"""An auxiliary loss that classifies every BEV cell; training only.

Legend: B batch, C channels, K classes, n boxes of a sample.
"""

from collections.abc import Sequence

import torch
from mmdet.models.losses import GaussianFocalLoss
from torch import Tensor, nn

from perception.models.box_head import BoxTargets
from perception.registry import MODELS
from perception.structures import BEVGrid


@MODELS.register_module()
class CenterHeatmap(nn.Module):
    """Where do box centres of each class lie? A dense question to the BEV features, beside the decoder's sparse one.

    Few queries are matched per step; here every cell gives the backbone a gradient. Meant for training from scratch;
    its own effect has not been ablated. Inference does not use it.

    *Source*: the heatmap and loss of CenterNet / CenterPoint, as an auxiliary supervision in the spirit of
    BEVFormerV2's (which supervises the image features).

    Args:
        pc_range: (x_min, y_min, z_min, x_max, y_max, z_max) of the BEV, LiDAR frame, metres.
        bev_h: rows of the BEV grid.
        bev_w: columns of the BEV grid.
        embed_dims: C.
        num_classes: K.
        sigma: spread of a centre, cells.
        loss_weight: factor of the loss.
    """

    def __init__(
        self,
        *,
        pc_range: Sequence[float],
        bev_h: int,
        bev_w: int,
        embed_dims: int = 256,
        num_classes: int = 10,
        sigma: float = 0.7,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.grid = BEVGrid.from_range(pc_range, bev_h, bev_w)
        self.embed_dims = embed_dims
        self.num_classes = num_classes
        self.sigma = sigma
        self.classify = nn.Linear(embed_dims, num_classes)
        nn.init.constant_(self.classify.bias, -4.59511985)  # prior probability 0.01
        self.focal_loss = GaussianFocalLoss(reduction="sum", loss_weight=loss_weight)
        self.register_buffer("centres", torch.tensor(self.grid.centres()).float(), persistent=False)
        self.centres: Tensor

    def loss(self, bev: Tensor, targets: Sequence[BoxTargets]) -> dict[str, Tensor]:
        """Focal loss per box.

        Args:
            bev: (B, bev_h·bev_w, C).
            targets: one per sample.

        Returns:
            "cls.loss_heatmap"; the number of targets is the box head's.
        """
        heatmap = torch.stack(
            [self.heatmap(target.boxes.to(bev.device), target.labels) for target in targets]
        )
        num_boxes = sum(len(target.labels) for target in targets)
        probability = self.classify(bev).float().sigmoid()  # (B, bev_h·bev_w, K)
        return {"cls.loss_heatmap": self.focal_loss(probability, heatmap.flatten(1, 2)) / max(num_boxes, 1)}

    @torch.no_grad()
    def heatmap(self, boxes: Tensor, labels: Tensor) -> Tensor:
        """A Gaussian around every centre, 1 in the cell that holds it; the largest where several meet.

        Args:
            boxes: (n, 7 or more), LiDAR frame, metres; centres beyond the grid are left out.
            labels: (n,), int64.

        Returns:
            (bev_h, bev_w, K), 0..1.
        """
        heat = self.centres.new_zeros(self.grid.bev_h, self.grid.bev_w, self.num_classes)
        cell = self.centres.new_tensor(self.grid.cell_size)
        corner = self.centres.new_tensor(self.grid.pc_range[:2])
        for centre, label in zip(boxes[:, :2].to(heat), labels.tolist(), strict=True):
            column, row = ((centre - corner) / cell).floor().int().tolist()
            if not (0 <= row < self.grid.bev_h and 0 <= column < self.grid.bev_w):
                continue
            distance = ((self.centres - centre) / cell).square().sum(-1)  # (bev_h, bev_w), cells²
            heat[..., label] = torch.maximum(heat[..., label], (-distance / (2 * self.sigma**2)).exp())
            heat[row, column, label] = 1.0
        return heat

"""The 2D box head: class, distances to a box's four sides and centerness at every location of the feature pyramid.

Legend: B batch, C channels, P locations of all levels (level by level, row by row), K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule, Scale
from mmcv.ops import batched_nms
from mmdet.models.losses.iou_loss import giou_loss
from mmengine.structures import InstanceData
from torch import Tensor, nn

from perception.models.box_losses import focal_loss
from perception.models.point_assigner import Locations, PointTargets, assign_points, centerness, locate
from perception.registry import MODELS

RT_RANGES = ((-1.0, 64.0), (64.0, 128.0), (128.0, 1e8))
_PRIOR_LOGIT = -4.59511985  # probability 0.01


@dataclass(frozen=True)
class Boxes2D:
    """Targets of one image, pixels of the network's input, exclusive right and bottom edges.

    boxes: (n, 4), x1, y1, x2, y2.
    labels: (n,), int64.
    ignored: (m, 4), regions whose content is not told.
    """

    boxes: Tensor
    labels: Tensor
    ignored: Tensor


@dataclass(frozen=True)
class PointOutputs:
    """What the head says at each location.

    cls_scores: (B, P, K), logits.
    distances: (B, P, 4), to left, top, right and bottom, in strides, at least 0.
    centerness: (B, P), logits.
    locations: where these are.
    """

    cls_scores: Tensor
    distances: Tensor
    centerness: Tensor
    locations: Locations

    def rows(self, index: Sequence[int]) -> "PointOutputs":
        """Those of some images."""
        if list(index) == list(range(len(self.cls_scores))):
            return self
        rows = list(index)
        return replace(
            self,
            cls_scores=self.cls_scores[rows],
            distances=self.distances[rows],
            centerness=self.centerness[rows],
        )


@MODELS.register_module()
class FCOSHead2D(nn.Module):
    """FCOS's head with the settings of FCOS-RT.

    *Source*: FCOS (Tian et al., TPAMI 2020); strides 8, 16, 32 and sizes of interest 64, 128 are those of AdelaiDet's
    FCOS-RT, of which no code is used: layers are mmcv's, the GIoU loss and its conventions mmdet's `FCOSHead` with
    `norm_on_bbox`, `centerness_on_reg` and `center_sampling`. Centerness comes from the box tower; a learned scale per
    level multiplies the distances, which are counted in strides.

    - *Losses*: focal of all locations and centerness of the assigned ones, both per assigned location; GIoU of the
      assigned ones as their mean weighted by the target's centerness. These are means over different things, so the
      GIoU has a count of its own, the sum of its weights: ranks then join their parts to exactly the whole batch's
      (upstream averages the ranks' counts). An image without a box has background alone.
    - *Ignored regions*: see `assign_points`. Upstream trains on them as background.
    - *Score*: √(class probability · centerness), the paper's; AdelaiDet does the same, mmdet leaves out the root, which
      changes no order and no AP.

    Args:
        in_channels: C of the pyramid.
        num_classes: K.
        levels: which of the pyramid's levels it reads.
        strides: of these levels, pixels.
        regress_ranges: of these levels: least and largest distance to a box's farthest side, pixels.
        feat_channels: width of the towers, a multiple of `num_groups`.
        stacked_convs: 3 × 3 convolutions per tower.
        num_groups: of the group norms.
        center_radius: how far from a box's centre its locations may lie, in strides.
        loss_focal_weight: factor of the classification loss.
        loss_giou_weight: factor of the box loss.
        loss_centerness_weight: factor of the centerness loss.
        score_threshold: class probabilities must exceed it, before centerness.
        nms_pre: candidates per level at most.
        nms_iou: boxes of a class that overlap a better one by more are dropped.
        max_num: boxes per image at most.

    Raises:
        ValueError: levels, strides and ranges differ in number, a count is below 1, or the groups don't fit the width.
    """

    def __init__(
        self,
        *,
        in_channels: int = 256,
        num_classes: int = 10,
        levels: Sequence[int] = (0, 1, 2),
        strides: Sequence[int] = (8, 16, 32),
        regress_ranges: Sequence[tuple[float, float]] = RT_RANGES,
        feat_channels: int = 256,
        stacked_convs: int = 4,
        num_groups: int = 32,
        center_radius: float = 1.5,
        loss_focal_weight: float = 1.0,
        loss_giou_weight: float = 1.0,
        loss_centerness_weight: float = 1.0,
        score_threshold: float = 0.05,
        nms_pre: int = 1000,
        nms_iou: float = 0.6,
        max_num: int = 100,
    ) -> None:
        super().__init__()
        if not len(levels) == len(strides) == len(regress_ranges) or not levels:
            raise ValueError(
                f"levels, strides and regress_ranges must have one entry per level, got {list(levels)}, "
                f"{list(strides)} and {list(regress_ranges)}."
            )
        counts = {"num_classes": num_classes, "stacked_convs": stacked_convs, "max_num": max_num}
        for name, count in {**counts, "nms_pre": nms_pre}.items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}.")
        if feat_channels % num_groups:
            raise ValueError(
                f"feat_channels must be a multiple of num_groups, got {feat_channels} and {num_groups}."
            )
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.levels = tuple(levels)
        self.strides = tuple(strides)
        self.regress_ranges = tuple((float(low), float(high)) for low, high in regress_ranges)
        self.center_radius = center_radius
        self.loss_focal_weight = loss_focal_weight
        self.loss_giou_weight = loss_giou_weight
        self.loss_centerness_weight = loss_centerness_weight
        self.score_threshold = score_threshold
        self.nms_pre = nms_pre
        self.nms_iou = nms_iou
        self.max_num = max_num
        self.cls_convs = _tower(in_channels, feat_channels, stacked_convs, num_groups)
        self.reg_convs = _tower(in_channels, feat_channels, stacked_convs, num_groups)
        self.conv_cls = nn.Conv2d(feat_channels, num_classes, 3, padding=1)
        self.conv_reg = nn.Conv2d(feat_channels, 4, 3, padding=1)
        self.conv_centerness = nn.Conv2d(feat_channels, 1, 3, padding=1)
        self.scales = nn.ModuleList(Scale(1.0) for _ in levels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.constant_(self.conv_cls.bias, _PRIOR_LOGIT)

    def forward(self, features: Sequence[Tensor]) -> PointOutputs:
        """Per level of `levels` (B, C, h, w) → what the locations say, at least float32."""
        scores, distances, centers = [], [], []
        for feature, scale in zip(features, self.scales, strict=True):
            box_feature = self.reg_convs(feature)
            scores.append(_flat(self.conv_cls(self.cls_convs(feature))))
            distances.append(_flat(scale(self.conv_reg(box_feature))).relu())
            centers.append(_flat(self.conv_centerness(box_feature))[..., 0])
        shapes = [(feature.shape[-2], feature.shape[-1]) for feature in features]
        return PointOutputs(
            torch.cat(scores, dim=1),
            torch.cat(distances, dim=1),
            torch.cat(centers, dim=1),
            locate(shapes, self.strides, self.regress_ranges, features[0].device),
        )

    def loss(self, outputs: PointOutputs, targets: Sequence[Boxes2D | None]) -> dict[str, Tensor]:
        """Losses over the images that have labels; an empty dict where none has.

        Args:
            outputs: of `forward`.
            targets: one per image; None where it has no labels, which is not the same as no boxes.

        Returns:
            "loss_focal" and "num_targets", the number of assigned locations; unless that is 0 also "loss_centerness",
            "loss_giou" and "loss_giou.num_targets", the sum of its weights. 0-dim each.
        """
        labelled = [target for target in targets if target is not None]
        if not labelled:
            return {}
        outputs = outputs.rows([number for number, target in enumerate(targets) if target is not None])
        wanted = self.match(outputs, labelled)
        labels = torch.stack([target.labels for target in wanted])  # (B, P)
        counts = ~torch.stack([target.is_ignored for target in wanted])
        is_assigned = labels < self.num_classes
        num_assigned = is_assigned.sum()
        one_hot = F.one_hot(labels, self.num_classes + 1)[..., :-1]
        focal = focal_loss(outputs.cls_scores, one_hot) * counts[..., None]
        losses = {
            "loss_focal": focal.sum() / num_assigned.clamp(min=1) * self.loss_focal_weight,
            "num_targets": num_assigned,
        }
        if int(num_assigned) == 0:
            return losses
        strides = outputs.locations.strides.expand_as(labels)[is_assigned][:, None]
        distances = torch.stack([target.distances for target in wanted])[is_assigned] / strides  # (n, 4)
        weights = centerness(distances)
        # All boxes as seen from their location, in strides: the GIoU depends on neither origin nor unit.
        giou = giou_loss(
            _around_origin(outputs.distances[is_assigned]),
            _around_origin(distances),
            eps=1e-6,
            reduction="none",
        )
        losses["loss_giou"] = (giou * weights).sum() / weights.sum() * self.loss_giou_weight
        losses["loss_giou.num_targets"] = weights.sum()
        losses["loss_centerness"] = self.loss_centerness_weight * F.binary_cross_entropy_with_logits(
            outputs.centerness[is_assigned], weights
        )
        return losses

    @torch.no_grad()
    def match(self, outputs: PointOutputs, targets: Sequence[Boxes2D]) -> list[PointTargets]:
        """What each image's locations should say."""
        return [
            assign_points(
                outputs.locations,
                target.boxes.float(),
                target.labels,
                target.ignored.float(),
                num_classes=self.num_classes,
                center_radius=self.center_radius,
            )
            for target in targets
        ]

    @torch.no_grad()
    def predict(self, outputs: PointOutputs, metainfos: Sequence[Mapping[str, Any]]) -> list[InstanceData]:
        """Boxes of each image, the best first.

        Args:
            outputs: of `forward`.
            metainfos: one per image: "img_shape" (rows, columns) before padding, "ori_shape" of the original image, and
                "scale_factor" (along x, along y) from that to the former.

        Returns:
            Per image "bboxes" (n, 4), pixels of the original image, "scores" (n,) and "labels" (n,).
        """
        return [self._decode(outputs, row, metainfo) for row, metainfo in enumerate(metainfos)]

    def rank(
        self, outputs: PointOutputs, image_shape: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Each level's best `nms_pre`, before non-maximum suppression, those to be dropped still among them.

        Args:
            outputs: of `forward`.
            image_shape: (rows, columns) of all the images before padding.

        Returns:
            boxes (B, n, 4), pixels of the network's input; scores, labels and, as bool, which to keep (B, n).
        """
        prob = outputs.cls_scores.sigmoid()  # (B, P, K)
        kept, start = [], 0
        for size in outputs.locations.level_sizes:
            best = prob[:, start : start + size].flatten(1).topk(min(self.nms_pre, size * self.num_classes))
            kept.append((best.values, best.indices + start * self.num_classes))
            start += size
        best_prob, flat_idx = (torch.cat(parts, dim=1) for parts in zip(*kept, strict=True))  # (B, n)
        point, labels = flat_idx // self.num_classes, flat_idx % self.num_classes
        scores = (best_prob * outputs.centerness.gather(1, point).sigmoid()).sqrt()
        distances = outputs.distances.gather(1, point[..., None].expand(-1, -1, 4))
        boxes = _around_origin(distances * outputs.locations.strides[point][..., None])
        boxes = boxes + outputs.locations.points[point].repeat(1, 1, 2)
        height, width = image_shape
        limits = boxes.new_tensor([width, height, width, height])
        return boxes.clamp(min=0).minimum(limits), scores, labels, best_prob > self.score_threshold

    def _decode(self, outputs: PointOutputs, row: int, metainfo: Mapping[str, Any]) -> InstanceData:
        height, width = metainfo["img_shape"][:2]
        found = self.rank(outputs.rows([row]), (height, width))
        keep = found[3][0]
        boxes, scores, labels = (values[0][keep] for values in found[:3])
        if len(boxes):
            nms = {"type": "nms", "iou_threshold": self.nms_iou, "max_num": self.max_num}
            thinned, index = batched_nms(boxes, scores, labels, nms)
            boxes, scores, labels = thinned[:, :4], thinned[:, 4], labels[index]
        rows, columns = metainfo["ori_shape"][:2]
        boxes = boxes / boxes.new_tensor([*metainfo["scale_factor"][:2]]).repeat(2)
        boxes = boxes.minimum(boxes.new_tensor([columns, rows, columns, rows]))
        return InstanceData(bboxes=boxes, scores=scores, labels=labels)


def _tower(in_channels: int, channels: int, num_convs: int, num_groups: int) -> nn.Sequential:
    widths = [in_channels, *[channels] * num_convs]
    norm = {"type": "GN", "num_groups": num_groups}
    return nn.Sequential(
        *(
            ConvModule(width, channels, 3, padding=1, norm_cfg=norm, bias=False)
            for width in widths[:num_convs]
        )
    )


def _flat(maps: Tensor) -> Tensor:
    """(B, C, h, w) → (B, h·w, C), at least float32."""
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
    return maps.flatten(2).transpose(1, 2)


def _around_origin(distances: Tensor) -> Tensor:
    """(..., 4), distances from a location to left, top, right, bottom → (..., 4), x1, y1, x2, y2 around it."""
    left_top, right_bottom = distances.split(2, dim=-1)
    return torch.cat([-left_top, right_bottom], dim=-1)

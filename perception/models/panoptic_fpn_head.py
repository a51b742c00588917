"""The segmentation head of Panoptic FPN: pyramid levels brought to one resolution, added, and classified.

Legend: B batch, C channels of the pyramid, K classes, (h, w) cells of the head's resolution.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.models.layers import ConvUpsample
from torch import Tensor, nn

from perception.models.seg_losses import IGNORE, cross_entropy, image_dice_loss
from perception.registry import MODELS
from perception.structures.driving_2d import BDD_SEG_CLASSES


@MODELS.register_module()
class PanopticFPNHead(nn.Module):
    """A dense classifier on a feature pyramid.

    *Source*: Kirillov et al., Panoptic Feature Pyramid Networks (CVPR 2019), §3.1: per level as many stages of 3 × 3
    convolution, group norm, ReLU and ×2 bilinear upsampling as bring it to `common_stride` (at least one convolution),
    their sum, a 1 × 1 convolution, and bilinear upsampling to the input. mmdet's head of this name has a class for all
    things and stages counted from stride 4; its `ConvUpsample` is used.

    The loss is a·CE + b·dice. MCLGS's "cross entropy and dice loss weighted by 0.5" is CE + 0.5 · dice in the defaults;
    read as 0.5 · (CE + dice) it is `loss_ce_weight=0.5`.

    Args:
        in_channels: C.
        num_classes: K.
        levels: which of the pyramid's levels it reads, the finest first.
        strides: of these levels, pixels; powers of two times `common_stride`.
        common_stride: of the logits, pixels.
        feat_channels: width, a multiple of `num_groups`.
        num_groups: of the group norms.
        loss_ce_weight: factor of the cross-entropy.
        loss_dice_weight: factor of the dice loss, see `image_dice_loss`; 0 leaves it out.
        min_confidence: pixels whose likeliest class is less probable are predicted as 255, no class; 0 decides all.

    Raises:
        ValueError: levels and strides differ in number, a stride is not a power of two times `common_stride`, or the
            groups don't fit the width.
    """

    def __init__(
        self,
        *,
        in_channels: int = 256,
        num_classes: int = len(BDD_SEG_CLASSES),
        levels: Sequence[int] = (0, 1, 2, 3),
        strides: Sequence[int] = (4, 8, 16, 32),
        common_stride: int = 4,
        feat_channels: int = 128,
        num_groups: int = 32,
        loss_ce_weight: float = 1.0,
        loss_dice_weight: float = 0.5,
        min_confidence: float = 0.0,
    ) -> None:
        super().__init__()
        if len(levels) != len(strides) or not levels:
            raise ValueError(
                f"levels and strides must have one entry per level, got {list(levels)} and {list(strides)}."
            )
        doublings = [_log2(stride, common_stride) for stride in strides]
        if feat_channels % num_groups:
            raise ValueError(
                f"feat_channels must be a multiple of num_groups, got {feat_channels} and {num_groups}."
            )
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.levels = tuple(levels)
        self.strides = tuple(strides)
        self.common_stride = common_stride
        self.loss_ce_weight = loss_ce_weight
        self.loss_dice_weight = loss_dice_weight
        self.min_confidence = min_confidence
        norm = {"type": "GN", "num_groups": num_groups}
        self.branches = nn.ModuleList(
            ConvUpsample(in_channels, feat_channels, max(count, 1), count, norm_cfg=norm, bias=False)
            for count in doublings
        )
        self.conv_logits = nn.Conv2d(feat_channels, num_classes, 1)
        nn.init.normal_(self.conv_logits.weight, std=0.01)
        nn.init.zeros_(self.conv_logits.bias)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Per level of `levels` (B, C, ...) → (B, K, h, w), logits at `common_stride`, at least float32.

        Raises:
            ValueError: levels don't come out at one size.
        """
        raised = [branch(feature) for branch, feature in zip(self.branches, features, strict=True)]
        shapes = {tuple(feature.shape[-2:]) for feature in raised}
        if len(shapes) != 1:
            raise ValueError(
                f"the segmentation head's levels come out at {sorted(shapes)}, not at one size. Let "
                f"data_preprocessor.pad_size_divisor be a multiple of {max(self.strides)}."
            )
        total = raised[0]
        for feature in raised[1:]:
            total = total + feature
        logits = self.conv_logits(total)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def loss(self, logits: Tensor, targets: Sequence[Tensor | None]) -> dict[str, Tensor]:
        """Losses over the images that have a mask, at the input's resolution; an empty dict where no pixel counts.

        Args:
            logits: of `forward`.
            targets: one per image, (Hp, Wp), int64, 255 = ignored; None without a mask.

        Returns:
            "loss_ce" and "num_targets", the number of pixels; with a dice loss also "loss_dice" and
            "loss_dice.num_targets", see `image_dice_loss`. 0-dim each.

        Raises:
            ValueError: a mask has not the size of the padded input.
        """
        rows = [number for number, target in enumerate(targets) if target is not None]
        size = tuple(length * self.common_stride for length in logits.shape[-2:])
        masks = [target for target in targets if target is not None]
        for mask in masks:
            if tuple(mask.shape) != size:
                raise ValueError(
                    f"a segmentation mask is {tuple(mask.shape)}, the padded input {size}. Masks go through the same "
                    "transforms as their images, and are padded in training by ImageDataPreprocessor."
                )
        if not any(bool((mask != IGNORE).any()) for mask in masks):
            return {}
        target = torch.stack(masks).to(logits.device)
        chosen = logits if len(rows) == len(logits) else logits[rows]
        chosen = F.interpolate(chosen, size=size, mode="bilinear", align_corners=False)
        losses = {
            "loss_ce": cross_entropy(chosen, target) * self.loss_ce_weight,
            "num_targets": (target != IGNORE).sum(),
        }
        if self.loss_dice_weight:
            dice, pairs = image_dice_loss(chosen, target)
            losses["loss_dice"] = dice * self.loss_dice_weight
            losses["loss_dice.num_targets"] = pairs
        return losses

    @torch.no_grad()
    def predict(self, logits: Tensor, metainfos: Sequence[Mapping[str, Any]]) -> list[Tensor]:
        """The likeliest classes per image, (rows, columns) of the original image, int64; see `at_original_size`."""
        found = []
        for row, metainfo in zip(logits, metainfos, strict=True):
            scores = self.at_original_size(row, metainfo)
            classes = scores.max(dim=0).indices  # on a CPU almost three times as fast as argmax
            if self.min_confidence > 0:
                classes[scores.softmax(dim=0).amax(dim=0) < self.min_confidence] = IGNORE
            found.append(classes)
        return found

    def at_original_size(self, logits: Tensor, metainfo: Mapping[str, Any]) -> Tensor:
        """Logits of one image, brought to its original size.

        Args:
            logits: (K, h, w), a row of `forward`'s result.
            metainfo: "img_shape" (rows, columns) of the input before padding, "ori_shape" of the original image.

        Returns:
            (K, rows, columns).
        """
        image = self.at_input_size(logits[None], metainfo["img_shape"][:2])
        size = tuple(metainfo["ori_shape"][:2])
        if size != tuple(image.shape[-2:]):
            image = F.interpolate(image, size=size, mode="bilinear", align_corners=False)
        return image[0]

    def at_input_size(self, logits: Tensor, image_shape: Sequence[int]) -> Tensor:
        """(B, K, h, w) → (B, K, rows, columns) of the network's input before padding, which is `image_shape`."""
        scale = float(self.common_stride)
        image = F.interpolate(logits, scale_factor=scale, mode="bilinear", align_corners=False)
        return image[..., : image_shape[0], : image_shape[1]]


def _log2(stride: int, common_stride: int) -> int:
    if common_stride < 1 or stride % common_stride or (stride // common_stride).bit_count() != 1:
        raise ValueError(
            f"strides must be 1, 2, 4, … times common_stride, got {stride} with common_stride = {common_stride}."
        )
    return (stride // common_stride).bit_length() - 1

"""The convolutional decoder of the BEV segmentation head."""

import torch
import torch.nn.functional as F
from mmdet.models.backbones.resnet import BasicBlock
from mmdet.models.layers import ResLayer
from torch import Tensor, nn


class SegEncode(nn.Module):
    """A small U-Net: the first three stages of a ResNet-18, upsampled and joined with the first stage.

    *Source*: `SegEncode` of Bin-ze/BEVFormer_segmentation_detection (after LSS's `BevEncode`); at width 64 the same
    tensors: 5,200,004 parameters from 256 channels to 4 classes.

    Args:
        in_channels: channels of the input.
        num_classes: channels of the output.
        width: channels of the first stage.
    """

    def __init__(self, *, in_channels: int, num_classes: int, width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = ResLayer(BasicBlock, width, width, 2)
        self.layer2 = ResLayer(BasicBlock, width, 2 * width, 2, stride=2)
        self.layer3 = ResLayer(BasicBlock, 2 * width, 4 * width, 2, stride=2)
        self.up1 = _UpBlock(in_channels=5 * width, out_channels=4 * width)
        self.up2 = nn.Sequential(
            nn.Identity(),  # the upsampling, to a size known only in `forward`
            nn.Conv2d(4 * width, 2 * width, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(inplace=True),
            nn.Conv2d(2 * width, num_classes, 1),
        )
        self._init_residuals()

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, rows, columns) → (B, num_classes, rows, columns), logits."""
        size = x.shape[-2:]
        # A narrow strided 1 × 1 convolution may not run in channels-last; see `choose_memory_format`.
        x = x.contiguous()
        x = self.bn1(self.conv1(x)).relu()  # (B, width, rows / 2, columns / 2)
        skip = self.layer1(x)
        x = self.layer3(self.layer2(skip))  # (B, 4 · width, rows / 8, columns / 8)
        x = self.up1(x, skip)
        return self.up2(F.interpolate(x, size=size, mode="bilinear", align_corners=True))

    def _init_residuals(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, BasicBlock):
                nn.init.zeros_(module.norm2.weight)


class _UpBlock(nn.Module):
    def __init__(self, *, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=True)
        return self.conv(torch.cat([skip, x], dim=1))

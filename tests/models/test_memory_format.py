"""The layout that keeps oneDNN from writing past a buffer."""

import pytest
import torch
from mmdet.models.backbones import ResNet
from torch import nn

from perception.models._memory_format import choose_memory_format
from perception.models.seg_encode import SegEncode


@pytest.mark.parametrize(
    ("base_channels", "expected"),
    [(4, torch.contiguous_format), (12, torch.contiguous_format), (24, torch.channels_last)],
)
def test_narrow_backbones_stay_contiguous(base_channels, expected):
    assert choose_memory_format(ResNet(depth=18, base_channels=base_channels)) == expected


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(4, 8, 1), nn.Conv2d(3, 8, 7, stride=2), nn.Conv2d(16, 8, 1, stride=2), nn.Linear(4, 8)],
)
def test_only_strided_pointwise_layers_matter(layer):
    assert choose_memory_format(nn.Sequential(layer)) == torch.channels_last
    assert choose_memory_format(nn.Sequential(layer, nn.Conv2d(4, 8, 1, stride=2))) == torch.contiguous_format


def test_a_narrow_neck_keeps_the_whole_contiguous():
    backbone, neck = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1, stride=2)
    assert choose_memory_format(backbone) == torch.channels_last
    assert choose_memory_format(backbone, neck) == torch.contiguous_format


def test_the_segmentation_unet_is_contiguous_whatever_it_is_given():
    unet = SegEncode(in_channels=8, num_classes=4, width=4)
    seen = []
    for layer in unet.modules():
        if isinstance(layer, nn.Conv2d) and layer.stride == (2, 2):
            layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].is_contiguous()))
    unet(torch.randn(2, 8, 32, 48).to(memory_format=torch.channels_last))
    assert len(seen) == 5
    assert all(seen)

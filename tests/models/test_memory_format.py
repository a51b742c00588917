"""The layout that keeps oneDNN from writing past a buffer."""

import pytest
import torch
from mmdet.models.backbones import ResNet
from torch import nn

from perception.models._memory_format import choose_memory_format


@pytest.mark.parametrize(
    ("base_channels", "expected"),
    [(4, torch.contiguous_format), (12, torch.contiguous_format), (24, torch.channels_last)],
)
def test_narrow_backbones_stay_contiguous(base_channels, expected):
    assert choose_memory_format(ResNet(depth=18, base_channels=base_channels)) == expected


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(4, 8, 1), nn.Conv2d(3, 8, 7, stride=2), nn.Conv2d(16, 8, 1, stride=2), nn.Linear(4, 8)]
)
def test_only_strided_pointwise_layers_matter(layer):
    assert choose_memory_format(nn.Sequential(layer)) == torch.channels_last
    assert choose_memory_format(nn.Sequential(layer, nn.Conv2d(4, 8, 1, stride=2))) == torch.contiguous_format

"""Which memory layout a backbone's convolutions may use."""

import torch
from torch import nn

_SMALLEST_BLOCK = 16


def choose_memory_format(*modules: nn.Module) -> torch.memory_format:
    """Channels-last, which takes about two thirds of the time on a CPU, unless a layer may not run in it.

    On x86 CPUs the backward pass of a strided 1 × 1 convolution in channels-last writes past its buffer if it has fewer
    input channels than a vector register has floats (8, with AVX-512 16).

    *Source*: https://github.com/uxlfoundation/oneDNN/issues/6035; met here with ResNet(base_channels=4).

    Args:
        modules: what the tensors pass through: backbone and neck.
    """
    for layer in nn.ModuleList(modules).modules():
        if isinstance(layer, nn.Conv2d):
            is_pointwise = set(layer.kernel_size) == {1} and max(layer.stride) > 1
            if is_pointwise and layer.in_channels // layer.groups < _SMALLEST_BLOCK:
                return torch.contiguous_format
    return torch.channels_last

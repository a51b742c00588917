"""``roi_align_forward`` and ``roi_align_backward`` of ``mmcv._ext``.

Legend: R regions, C channels, h x w the pooled size, g the samples in one bin.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

_MAX, _AVERAGE = 0, 1


def _sample_positions(
    roi: Tensor, size: tuple[int, int], spatial_scale: float, sampling_ratio: int, aligned: bool
) -> tuple[Tensor, Tensor]:
    """Positions y and x in pixels, (h, w, g) each, of the samples of one region (x1, y1, x2, y2)."""
    x1, y1, x2, y2 = (roi * spatial_scale - (0.5 if aligned else 0.0)).unbind()
    extent = torch.stack((y2 - y1, x2 - x1))
    if not aligned:
        extent = extent.clamp(min=1.0)
    elif bool((extent < 0).any()):
        raise ValueError(f"a region must have x2 >= x1 and y2 >= y1, found {roi.tolist()}")
    axes = []
    for start, length, bins in zip((y1, x1), extent, size, strict=True):
        per_bin = sampling_ratio if sampling_ratio > 0 else math.ceil(float(length) / bins)
        step = (torch.arange(bins * per_bin, device=roi.device, dtype=roi.dtype) + 0.5) / max(per_bin, 1)
        axes.append((start + step * length / bins).view(bins, per_bin))
    y, x = axes[0][:, None, :, None], axes[1][None, :, None, :]
    y, x = torch.broadcast_tensors(y, x)  # (h, w, g_y, g_x)
    return y.flatten(2), x.flatten(2)


def _bilinear(y: Tensor, x: Tensor, height: int, width: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Four pairs (flat pixel index, weight). Up to one pixel outside is the border's value, further out 0."""
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    row, col = y.floor().long(), x.floor().long()
    down, right = y - row, x - col
    for y_idx, y_weight in ((row, 1 - down), ((row + 1).clamp(max=height - 1), down)):
        for x_idx, x_weight in ((col, 1 - right), ((col + 1).clamp(max=width - 1), right)):
            yield y_idx * width + x_idx, y_weight * x_weight * inside


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Pools each region of the map into output (R, C, h, w).

    Source: He et al., Mask R-CNN (2017), section 3.

    Args:
        input: (B, C, H, W).
        rois: (R, 5), (index into B, x1, y1, x2, y2) in pixels of the unscaled image.
        output: (R, C, h, w).
        argmax_y: (R, C, h, w), written in max mode: where the largest sample lay, -1 if there was none.
        argmax_x: the same.
        aligned_height: h.
        aligned_width: w.
        spatial_scale: pixels of the map per pixel of the image.
        sampling_ratio: samples per bin and axis; 0 takes one per pixel.
        pool_mode: 0 max, 1 mean.
        aligned: whether pixel centres lie at +0.5; without it regions are at least one pixel large.

    Raises:
        ValueError: a region of negative size with ``aligned``.
    """
    height, width = input.shape[2:]
    for i, roi in enumerate(rois):
        y, x = _sample_positions(
            roi[1:], (aligned_height, aligned_width), spatial_scale, sampling_ratio, aligned
        )
        if y.shape[2] == 0:
            output[i] = 0 if pool_mode == _AVERAGE else -10000.0
            if pool_mode == _MAX:
                argmax_y[i], argmax_x[i] = -1.0, -1.0
            continue
        pixels = input[int(roi[0])].flatten(1)  # (C, H*W)
        samples = sum(pixels[:, index] * weight for index, weight in _bilinear(y, x, height, width))
        if pool_mode == _AVERAGE:
            output[i] = samples.mean(-1)
        else:
            output[i], best = samples.max(-1)  # (C, h, w)
            argmax_y[i] = y.expand_as(samples).gather(-1, best[..., None])[..., 0]
            argmax_x[i] = x.expand_as(samples).gather(-1, best[..., None])[..., 0]


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Adds the gradient of the map to grad_input (B, C, H, W); arguments as the forward."""
    height, width = grad_input.shape[2:]
    for i, roi in enumerate(rois):
        target = grad_input[int(roi[0])].view(grad_input.shape[1], -1)  # (C, H*W), shares memory
        if pool_mode == _MAX:
            y, x, grad = argmax_y[i], argmax_x[i], grad_output[i]  # (C, h, w)
            grad = grad * (y > -1)
        else:
            y, x = _sample_positions(
                roi[1:], (aligned_height, aligned_width), spatial_scale, sampling_ratio, aligned
            )
            grad = (grad_output[i] / max(y.shape[2], 1))[..., None]  # (C, h, w, 1)
        for index, weight in _bilinear(y, x, height, width):
            share = (grad * weight).flatten(1)
            target.scatter_add_(
                1, index.expand(len(target), *index.shape[-grad.dim() + 1 :]).flatten(1), share
            )

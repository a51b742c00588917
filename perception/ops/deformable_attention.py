"""Multi-scale deformable attention in plain torch.

Legend: B batch, Q queries, H heads, D channels per head (C = H * D), L levels, P points per level,
S = sum of h * w over the levels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def multi_scale_deformable_attention(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    r"""Sums bilinear samples of each level's feature map, weighted per head, level and point.

    .. math:: out_{bqh} = \sum_{l,p} A_{bqhlp} \, V_{bhl}(x_{bqhlp})

    Source: Zhu et al., Deformable DETR (2021), eq. 3, without the linear projections around it. Location
    (0, 0) is the upper left corner of the first pixel, (1, 1) the lower right corner of the last; outside is
    zero.

    Positions are always computed in float32 at least: half precision cannot address the pixels of a large
    map. Half-precision inputs are therefore sampled in float32 and the result is cast back.

    Args:
        value: (B, S, H, D), the maps flattened row by row, one level after the other.
        spatial_shapes: L pairs (h, w) of plain ints, so that an export sees constants.
        sampling_locations: (B, Q, H, L, P, 2), (x, y) in 0..1 of each map; values outside are allowed.
        attention_weights: (B, Q, H, L, P), usually with sum 1 over L and P; not normalised here.

    Returns:
        (B, Q, C) in value's dtype, heads one after the other along C.

    Raises:
        ValueError: the shapes contradict each other.

    Example:
        >>> value = torch.ones(1, 6, 2, 4)
        >>> locations, weights = torch.full((1, 5, 2, 1, 3, 2), 0.5), torch.full((1, 5, 2, 1, 3), 1 / 3)
        >>> multi_scale_deformable_attention(value, [(2, 3)], locations, weights).shape
        torch.Size([1, 5, 8])
    """
    _check_shapes(value, spatial_shapes, sampling_locations, attention_weights)
    batch, _, heads, channels = value.shape
    queries = sampling_locations.shape[1]
    dtype = torch.promote_types(value.dtype, torch.float32)

    maps = value.to(dtype).permute(0, 2, 3, 1).flatten(0, 1)  # (B*H, D, S)
    grid = (2 * sampling_locations.to(dtype) - 1).permute(0, 2, 3, 4, 1, 5).flatten(0, 1)  # (B*H, L, P, Q, 2)
    weights = attention_weights.to(dtype).permute(0, 2, 3, 4, 1).flatten(0, 1)  # (B*H, L, P, Q)

    out = maps.new_zeros(batch * heads, channels, queries)
    start = 0
    for level, (height, width) in enumerate(spatial_shapes):
        feature = maps[..., start : start + height * width].unflatten(2, (height, width))  # (B*H, D, h, w)
        start += height * width
        samples = F.grid_sample(feature, grid[:, level], padding_mode="zeros", align_corners=False)
        out = out + (samples * weights[:, None, level]).sum(
            2
        )  # (B*H, D, Q); with P before Q the sum runs along memory
    return out.view(batch, heads * channels, queries).transpose(1, 2).to(value.dtype)  # (B, Q, C)


def _check_shapes(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> None:
    if value.dim() != 4:
        raise ValueError(f"value must be (B, S, H, D), found shape {tuple(value.shape)}")
    batch, cells, heads, _ = value.shape
    total = sum(height * width for height, width in spatial_shapes)
    if total != cells:
        raise ValueError(
            f"spatial_shapes {list(spatial_shapes)} add up to {total} cells, but value has {cells}: "
            "give the (h, w) of each level, in the order in which the maps were flattened"
        )
    shape, levels = tuple(locations.shape), len(spatial_shapes)
    if len(shape) != 6 or (shape[0], shape[2], shape[3], shape[5]) != (batch, heads, levels, 2):
        raise ValueError(
            f"sampling_locations must be (B={batch}, Q, H={heads}, L={levels}, P, 2), found {shape}"
        )
    if tuple(weights.shape) != shape[:5]:
        raise ValueError(
            f"attention_weights must be {shape[:5]} like the locations, found {tuple(weights.shape)}"
        )

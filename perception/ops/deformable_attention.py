"""Multi-scale deformable attention: the reference in plain torch, and the choice between it and the kernel.

Legend: B batch, Q queries, H heads, D channels per head (C = H * D), L levels, P points per level,
S = sum of h * w over the levels.
"""

import importlib.util
import os
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from perception.ops import deformable_attention_op

Implementation = Literal["auto", "reference", "triton"]

ENVIRONMENT_VARIABLE = "PERCEPTION_DEFORMABLE_ATTENTION"
# Both are read once, so that a compiled graph does not depend on them.
_AUTO = os.environ.get(ENVIRONMENT_VARIABLE, "auto")
_HAS_TRITON = importlib.util.find_spec("triton") is not None
_KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def multi_scale_deformable_attention(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *,
    implementation: Implementation = "auto",
) -> Tensor:
    r"""Sums bilinear samples of each level's feature map, weighted per head, level and point.

    .. math:: out_{bqh} = \sum_{l,p} A_{bqhlp} \, V_{bhl}(x_{bqhlp})

    Source: Zhu et al., Deformable DETR (2021), eq. 3, without the linear projections around it. Location
    (0, 0) is the upper left corner of the first pixel, (1, 1) the lower right corner of the last; outside is
    zero.

    Positions are always computed in float32 at least: half precision cannot address the pixels of a large
    map. Half-precision inputs are therefore sampled in float32 and the result is cast back.

    On CUDA tensors of at most 32 bits the Triton kernel computes it where Triton is installed, except while a model is
    exported; everywhere else torch's `grid_sample` does. The environment variable PERCEPTION_DEFORMABLE_ATTENTION, read
    at import, replaces "auto". Under `torch.use_deterministic_algorithms` the kernel's gradients are deterministic;
    on CUDA those of `grid_sample` can't be, and torch then raises RuntimeError.

    Args:
        value: (B, S, H, D), the maps flattened row by row, one level after the other.
        spatial_shapes: L pairs (h, w) of plain ints, so that an export sees constants.
        sampling_locations: (B, Q, H, L, P, 2), (x, y) in 0..1 of each map; values outside are allowed.
        attention_weights: (B, Q, H, L, P), usually with sum 1 over L and P; not normalised here.
        implementation: "auto" as above; "reference" always takes `grid_sample`; "triton" the kernel, or raises.

    Returns:
        (B, Q, C) in value's dtype, heads one after the other along C.

    Raises:
        ValueError: the shapes contradict each other; `implementation` is unknown; the kernel was asked for by name and
            can't run on these tensors.
        ModuleNotFoundError: the kernel was asked for by name, and Triton is not installed.

    Example:
        >>> value = torch.ones(1, 6, 2, 4)
        >>> locations, weights = torch.full((1, 5, 2, 1, 3, 2), 0.5), torch.full((1, 5, 2, 1, 3), 1 / 3)
        >>> multi_scale_deformable_attention(value, [(2, 3)], locations, weights).shape
        torch.Size([1, 5, 8])
    """
    _check_shapes(value, spatial_shapes, sampling_locations, attention_weights)
    if _uses_kernel(implementation, (value, sampling_locations, attention_weights)):
        sides = [side for shape in spatial_shapes for side in shape]
        return deformable_attention_op.deformable_attention(
            value, sides, sampling_locations, attention_weights
        )
    return _reference(value, spatial_shapes, sampling_locations, attention_weights)


def _reference(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
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


def _uses_kernel(implementation: str, tensors: tuple[Tensor, ...]) -> bool:
    chosen = _AUTO if implementation == "auto" else implementation
    fits = all(tensor.dtype in _KERNEL_DTYPES for tensor in tensors)
    if chosen == "auto":
        is_cuda = all(tensor.is_cuda for tensor in tensors)
        return _HAS_TRITON and fits and is_cuda and not torch.compiler.is_exporting()
    if chosen == "reference":
        return False
    if chosen != "triton":
        raise ValueError(
            f"implementation must be 'auto', 'reference' or 'triton', found {chosen!r}: "
            f"correct the argument or the environment variable {ENVIRONMENT_VARIABLE}"
        )
    if not _HAS_TRITON:
        raise ModuleNotFoundError(
            "the Triton kernel was asked for, but Triton is not installed: install the extra "
            "`kernels`, or take implementation='reference'"
        )
    if not fits:
        raise ValueError(
            f"the Triton kernel takes float32, float16 and bfloat16, found {[x.dtype for x in tensors]}: "
            "cast them, or take implementation='reference'"
        )
    return True


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

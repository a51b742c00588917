"""Multi-scale deformable attention: the reference in plain torch, and the choice between it and the kernels.

Legend: B batch, N maps per batch row, Q queries, H heads, D channels per head (C = H * D), L levels, P points per
level, M slots, S = sum of h * w over the levels.
"""

import importlib.util
import os
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from perception.ops import deformable_attention_op

Implementation = Literal["auto", "reference", "triton", "numba"]

ENVIRONMENT_VARIABLE = "PERCEPTION_DEFORMABLE_ATTENTION"
# Both are read once, so that a compiled graph does not depend on them.
_AUTO = os.environ.get(ENVIRONMENT_VARIABLE, "auto")
_HAS_TRITON = importlib.util.find_spec("triton") is not None
_TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def multi_scale_deformable_attention(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    map_idx: Tensor | None = None,
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

    With `map_idx` a batch row has N maps, of which each query may look into several, one for each of its M slots: the
    points of every level are split evenly, slot by slot, and the sum runs over all of them.

    On CUDA tensors of at most 32 bits the Triton kernel computes it where Triton is installed, on CPU tensors the numba
    kernel; elsewhere, and while a model is exported, torch's `grid_sample`. The environment variable
    PERCEPTION_DEFORMABLE_ATTENTION, read at import, replaces "auto". Under `torch.use_deterministic_algorithms` the
    kernels' gradients are deterministic (numba's always); on CUDA those of `grid_sample` can't be, and torch then
    raises RuntimeError.

    Args:
        value: (B * N, S, H, D), the maps flattened row by row, one level after the other. N is 1 without `map_idx`.
        spatial_shapes: L pairs (h, w) of plain ints, so that an export sees constants.
        sampling_locations: (B, Q, H, L, P, 2), (x, y) in 0..1 of each map; values outside are allowed.
        attention_weights: (B, Q, H, L, P), usually with sum 1 over L and P; not normalised here.
        map_idx: (B, Q, M), int64, which of its batch row's maps each slot reads, in 0..N-1 (checked on a CPU only).
            P is a multiple of M.
        implementation: "auto" as above; "reference" always takes `grid_sample`; "triton" and "numba" that kernel, or
            they raise.

    Returns:
        (B, Q, C) in value's dtype, heads one after the other along C.

    Raises:
        ValueError: the shapes contradict each other; `map_idx` is out of range; `implementation` is unknown; a kernel
            was asked for by name and can't run on these tensors.
        ModuleNotFoundError: the Triton kernel was asked for by name, and Triton is not installed.

    Example:
        >>> value = torch.ones(1, 6, 2, 4)
        >>> locations, weights = torch.full((1, 5, 2, 1, 3, 2), 0.5), torch.full((1, 5, 2, 1, 3), 1 / 3)
        >>> multi_scale_deformable_attention(value, [(2, 3)], locations, weights).shape
        torch.Size([1, 5, 8])
    """
    _check_shapes(value, spatial_shapes, sampling_locations, attention_weights, map_idx)
    kernel = _choose(implementation, (value, sampling_locations, attention_weights))
    if kernel == "reference":
        return _reference(value, spatial_shapes, sampling_locations, attention_weights, map_idx)
    sides = [side for shape in spatial_shapes for side in shape]
    return deformable_attention_op.deformable_attention(
        value, sides, sampling_locations, attention_weights, map_idx, kernel
    )


def _reference(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    map_idx: Tensor | None = None,
) -> Tensor:
    heads, channels = value.shape[2:]
    batch, queries = sampling_locations.shape[:2]
    dtype = torch.promote_types(value.dtype, torch.float32)

    maps = value.to(dtype).unflatten(0, (batch, -1)).permute(0, 3, 4, 1, 2).flatten(0, 1)  # (B*H, D, N, S)
    grid = (2 * sampling_locations.to(dtype) - 1).permute(0, 2, 3, 4, 1, 5).flatten(0, 1)  # (B*H, L, P, Q, 2)
    weights = attention_weights.to(dtype).permute(0, 2, 3, 4, 1).flatten(0, 1)  # (B*H, L, P, Q)
    number = None
    if map_idx is not None:
        if not torch.compiler.is_compiling():  # which exports count as
            deformable_attention_op.check_map_idx(map_idx, maps.shape[2])
        number = _map_of_each_point(map_idx, heads, grid)  # (B*H, P, Q)

    out = maps.new_zeros(batch * heads, channels, queries)
    start = 0
    for level, (height, width) in enumerate(spatial_shapes):
        feature = maps[..., start : start + height * width].unflatten(3, (height, width))  # (B*H, D, N, h, w)
        start += height * width
        samples = _sample(feature, grid[:, level], number)  # (B*H, D, P, Q)
        out = out + (samples * weights[:, None, level]).sum(
            2
        )  # (B*H, D, Q); with P before Q the sum runs along memory
    return out.view(batch, heads * channels, queries).transpose(1, 2).to(value.dtype)  # (B, Q, C)


def _sample(feature: Tensor, grid: Tensor, number: Tensor | None) -> Tensor:
    """(..., D, N, h, w) at (..., P, Q, 2) of the maps `number`, (..., P, Q), or of the only one → (..., D, P, Q)."""
    if number is None:
        return F.grid_sample(feature.squeeze(2), grid, padding_mode="zeros", align_corners=False)
    # One above the other, with a row of zeros before and behind each, the maps are one image. That takes four corners
    # per point, where sampling between maps takes eight, and every runtime knows it.
    num_maps, height = feature.shape[2:4]
    stack = F.pad(feature, (0, 0, 1, 1)).flatten(2, 3)  # (..., D, N * (h + 2), w)
    x, y = grid.unbind(dim=-1)
    row = ((y + 1) * (height / 2) - 0.5).clamp(-1, height) + 1  # of the padded map
    row = row + number * (height + 2)
    y = (2 * row + 1) / (num_maps * (height + 2)) - 1
    return F.grid_sample(stack, torch.stack([x, y], dim=-1), padding_mode="zeros", align_corners=False)


def _map_of_each_point(map_idx: Tensor, heads: int, grid: Tensor) -> Tensor:
    """(B, Q, M) → (B*H, P, Q) in the grid's type, each slot's map for all of its points."""
    per_slot = grid.shape[2] // map_idx.shape[2]
    number = map_idx.to(grid.dtype).transpose(1, 2).repeat_interleave(per_slot, dim=1)  # (B, P, Q)
    return number.repeat_interleave(heads, dim=0)


def _choose(implementation: str, tensors: tuple[Tensor, ...]) -> str:
    """Which of them runs: "reference", "triton" or "numba"."""
    chosen = _AUTO if implementation == "auto" else implementation
    is_cpu = all(tensor.device.type == "cpu" for tensor in tensors)
    fits_triton = all(tensor.dtype in _TRITON_DTYPES for tensor in tensors)
    if chosen == "auto":
        if torch.compiler.is_exporting():
            return "reference"
        if is_cpu:
            return "numba"
        is_cuda = all(tensor.is_cuda for tensor in tensors)
        return "triton" if _HAS_TRITON and fits_triton and is_cuda else "reference"
    if chosen not in get_args(Implementation):
        raise ValueError(
            f"implementation must be one of {get_args(Implementation)}, found {chosen!r}: "
            f"correct the argument or the environment variable {ENVIRONMENT_VARIABLE}"
        )
    if chosen == "numba" and not is_cpu:
        raise ValueError(
            f"the numba kernel needs CPU tensors, found {[str(x.device) for x in tensors]}: take implementation='auto'"
        )
    if chosen == "triton" and not _HAS_TRITON:
        raise ModuleNotFoundError(
            "the Triton kernel was asked for, but Triton is not installed: install the extra "
            "`kernels`, or take implementation='reference'"
        )
    if chosen == "triton" and not fits_triton:
        raise ValueError(
            f"the Triton kernel takes float32, float16 and bfloat16, found {[x.dtype for x in tensors]}: "
            "cast them, or take implementation='reference'"
        )
    return chosen


def _check_shapes(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    locations: Tensor,
    weights: Tensor,
    map_idx: Tensor | None,
) -> None:
    if value.dim() != 4:
        raise ValueError(f"value must be (B, S, H, D), found shape {tuple(value.shape)}")
    rows, cells, heads, _ = value.shape
    total = sum(height * width for height, width in spatial_shapes)
    if total != cells:
        raise ValueError(
            f"spatial_shapes {list(spatial_shapes)} add up to {total} cells, but value has {cells}: "
            "give the (h, w) of each level, in the order in which the maps were flattened"
        )
    shape, levels = tuple(locations.shape), len(spatial_shapes)
    batch = rows if map_idx is None else map_idx.shape[0]
    if len(shape) != 6 or (shape[0], shape[2], shape[3], shape[5]) != (batch, heads, levels, 2):
        raise ValueError(
            f"sampling_locations must be (B={batch}, Q, H={heads}, L={levels}, P, 2), found {shape}"
        )
    if tuple(weights.shape) != shape[:5]:
        raise ValueError(
            f"attention_weights must be {shape[:5]} like the locations, found {tuple(weights.shape)}"
        )
    if map_idx is None:
        return
    if (
        map_idx.dim() != 3
        or map_idx.shape[1] != shape[1]
        or map_idx.shape[2] < 1
        or shape[4] % map_idx.shape[2]
    ):
        raise ValueError(
            f"map_idx must be (B={batch}, Q={shape[1]}, M) with M a divisor of P={shape[4]}, found "
            f"{tuple(map_idx.shape)}"
        )
    if batch < 1 or rows % batch:
        raise ValueError(
            f"value must have as many maps for each batch row, found {rows} for {batch} rows of map_idx"
        )

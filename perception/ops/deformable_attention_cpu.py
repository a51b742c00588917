"""Kernels of multi-scale deformable attention for CPUs, compiled by numba.

Torch's `grid_sample` writes every sample to memory before they are weighted, channel by channel; here a sample is added
where it is made, all channels of a head at once.
Legend: B batch, N maps per batch row, Q queries, H heads, D channels per head, L levels, P points per level, M slots,
S = sum of h * w over the levels.
"""

from collections.abc import Sequence

import numba
import numpy as np
import torch
from torch import Tensor

from perception.ops.deformable_attention_op import check_map_idx
from perception.utils.jit import parallel_kernel, reordering_kernel


@parallel_kernel
def _attend(
    value: np.ndarray, levels: np.ndarray, places: np.ndarray, weights: np.ndarray, maps: np.ndarray,
    out: np.ndarray,
) -> None:  # fmt: skip
    """Fill ``out`` (B, Q, H, D); a thread takes whole heads."""
    num_rows, _, num_heads, num_levels, num_points = weights.shape
    num_maps = value.shape[0] // num_rows
    per_slot = num_points // maps.shape[2]
    kind = value.dtype.type
    one, two, half = kind(1), kind(2), kind(0.5)
    for task in numba.prange(num_rows * num_heads):
        row, head = task // num_heads, task % num_heads
        for query in range(weights.shape[1]):
            total = out[row, query, head]
            total[:] = kind(0)
            for level in range(num_levels):
                height, width, start = levels[level]
                for point in range(num_points):
                    # The steps of grid_sample: rounded alike, both put a sample to the same side of a pixel's centre.
                    x = (
                        ((two * places[row, query, head, level, point, 0] - one) + one) * kind(width) - one
                    ) * half
                    y = (
                        ((two * places[row, query, head, level, point, 1] - one) + one) * kind(height) - one
                    ) * half
                    # False for NaN and infinity too, which then never become an address.
                    if not (x >= -1 and y >= -1 and x < width and y < height):
                        continue
                    weight = weights[row, query, head, level, point]
                    plane = value[row * num_maps + maps[row, query, point // per_slot]]
                    left, top = int(np.floor(x)), int(np.floor(y))
                    part_x, part_y = x - kind(left), y - kind(top)
                    # A corner outside gets no share, and stands for one inside: one loop serves all four.
                    share_left = one - part_x if left >= 0 else kind(0)
                    share_right = part_x if left + 1 < width else kind(0)
                    share_top = weight * (one - part_y) if top >= 0 else kind(0)
                    share_bottom = weight * part_y if top + 1 < height else kind(0)
                    upper = start + max(top, 0) * width
                    lower = start + min(top + 1, height - 1) * width
                    first, second = max(left, 0), min(left + 1, width - 1)
                    share_a, share_b = share_top * share_left, share_top * share_right
                    share_c, share_d = share_bottom * share_left, share_bottom * share_right
                    pixel_a, pixel_b = plane[upper + first, head], plane[upper + second, head]
                    pixel_c, pixel_d = plane[lower + first, head], plane[lower + second, head]
                    for channel in range(total.shape[0]):
                        total[channel] += (
                            share_a * pixel_a[channel]
                            + share_b * pixel_b[channel]
                            + share_c * pixel_c[channel]
                            + share_d * pixel_d[channel]
                        )


@reordering_kernel
def _dot(first: np.ndarray, second: np.ndarray) -> float:
    total = first.dtype.type(0)
    for number in range(first.shape[0]):
        total += first[number] * second[number]
    return total


@parallel_kernel
def _differentiate(
    grad_out: np.ndarray, value: np.ndarray, levels: np.ndarray, places: np.ndarray, weights: np.ndarray,
    maps: np.ndarray, grad_value: np.ndarray, grad_places: np.ndarray, grad_weights: np.ndarray,
    needs_value: bool, needs_sampling: bool,
) -> None:  # fmt: skip
    """Add to the gradients; a thread takes whole heads, whose gradients meet those of no other."""
    num_rows, _, num_heads, num_levels, num_points = weights.shape
    num_maps = value.shape[0] // num_rows
    per_slot = num_points // maps.shape[2]
    kind = value.dtype.type
    zero, one, two, half = kind(0), kind(1), kind(2), kind(0.5)
    for task in numba.prange(num_rows * num_heads):
        row, head = task // num_heads, task % num_heads
        for query in range(weights.shape[1]):
            grad = grad_out[row, query, head]
            for level in range(num_levels):
                height, width, start = levels[level]
                for point in range(num_points):
                    x = (
                        ((two * places[row, query, head, level, point, 0] - one) + one) * kind(width) - one
                    ) * half
                    y = (
                        ((two * places[row, query, head, level, point, 1] - one) + one) * kind(height) - one
                    ) * half
                    if not (x >= -1 and y >= -1 and x < width and y < height):
                        continue
                    weight = weights[row, query, head, level, point]
                    map_row = row * num_maps + maps[row, query, point // per_slot]
                    left, top = int(np.floor(x)), int(np.floor(y))
                    part_x, part_y = x - kind(left), y - kind(top)
                    slope_x, slope_y, sampled = zero, zero, zero
                    for down in range(2):
                        if not 0 <= top + down < height:
                            continue
                        share_y = part_y if down else one - part_y
                        for right in range(2):
                            if not 0 <= left + right < width:
                                continue
                            share_x = part_x if right else one - part_x
                            cell = start + (top + down) * width + left + right
                            if needs_sampling:
                                pixel = value[map_row, cell, head]
                                along = _dot(grad, pixel)
                                sampled += share_x * share_y * along
                                slope_x += share_y * along if right else -share_y * along
                                slope_y += share_x * along if down else -share_x * along
                            if needs_value:
                                into = grad_value[map_row, cell, head]
                                share = weight * share_x * share_y
                                for channel in range(grad.shape[0]):
                                    into[channel] += share * grad[channel]
                    if needs_sampling:
                        grad_weights[row, query, head, level, point] = sampled
                        grad_places[row, query, head, level, point, 0] = slope_x * weight * kind(width)
                        grad_places[row, query, head, level, point, 1] = slope_y * weight * kind(height)


def forward(
    value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor, map_idx: Tensor | None
) -> Tensor:
    """Run the forward kernel, on as many threads as torch has.

    Args:
        value: (B * N, S, H, D), on the CPU like the others.
        shapes: h and w of each level in turn.
        locations: (B, Q, H, L, P, 2).
        weights: (B, Q, H, L, P).
        map_idx: (B, Q, M), int64, or None.

    Returns:
        (B, Q, H * D), value's dtype. Sums are in float32, or in float64 for a value of float64.

    Raises:
        ValueError: `map_idx` is not in 0..N-1.
    """
    dtype = torch.promote_types(value.dtype, torch.float32)
    batch, queries, heads = weights.shape[:3]
    out = torch.empty(batch, queries, heads, value.shape[-1], dtype=dtype)
    arrays = (
        *_arrays(dtype, value),
        _levels(shapes),
        *_arrays(dtype, locations, weights),
        _maps(map_idx, value, weights),
    )
    _attend(*arrays, out.numpy())
    return out.flatten(2).to(value.dtype)


def backward(
    grad_out: Tensor,
    value: Tensor,
    shapes: Sequence[int],
    locations: Tensor,
    weights: Tensor,
    map_idx: Tensor | None,
    *,
    needs_value: bool,
    needs_sampling: bool,
    deterministic: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the backward kernel.

    Args:
        grad_out: (B, Q, H * D).
        value: see `forward`.
        shapes: see `forward`.
        locations: see `forward`.
        weights: see `forward`.
        map_idx: see `forward`.
        needs_value: whether the gradient of value is wanted.
        needs_sampling: whether those of locations and weights are.
        deterministic: it always is, whatever the number of threads.

    Returns:
        Gradients of value, locations and weights in their shapes and dtypes; (0,) in place of one that is not wanted.
    """
    dtype = torch.promote_types(value.dtype, torch.float32)
    wanted = ((value, needs_value), (locations, needs_sampling), (weights, needs_sampling))
    grads = [torch.zeros(x.shape if is_wanted else (0,) * x.dim(), dtype=dtype) for x, is_wanted in wanted]
    arrays = (
        *_arrays(dtype, grad_out.view(*weights.shape[:3], value.shape[3]), value), _levels(shapes),
        *_arrays(dtype, locations, weights), _maps(map_idx, value, weights), *(grad.numpy() for grad in grads),
    )  # fmt: skip
    _differentiate(*arrays, needs_value, needs_sampling)
    cast = [
        grad.to(x.dtype) if is_wanted else x.new_empty(0)
        for grad, (x, is_wanted) in zip(grads, wanted, strict=True)
    ]
    return cast[0], cast[1], cast[2]


def _arrays(dtype: torch.dtype, *tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().to(dtype).contiguous().numpy() for tensor in tensors]


def _maps(map_idx: Tensor | None, value: Tensor, weights: Tensor) -> np.ndarray:
    if map_idx is None:
        return np.zeros((*weights.shape[:2], 1), dtype=np.int64)
    check_map_idx(map_idx, len(value) // len(weights))
    return map_idx.numpy()


def _levels(shapes: Sequence[int]) -> np.ndarray:
    """(L, 3): h, w and the first pixel's number of each level."""
    sizes = np.array(shapes, dtype=np.int64).reshape(-1, 2)
    starts = np.cumsum(np.concatenate([[0], sizes.prod(axis=1)[:-1]]))
    return np.concatenate([sizes, starts[:, None]], axis=1)

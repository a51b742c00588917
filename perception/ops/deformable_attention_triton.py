"""Triton kernels of multi-scale deformable attention. Import this only to launch one: Triton need not be installed.

Legend: B batch, N maps per batch row, Q queries, H heads, D channels per head, L levels, P points per level, M slots,
S = sum of h * w over the levels. In the kernels R counts the rows of a tile, and ``shapes`` holds (h, w, first pixel's
number) of each level. Without ``map_idx`` N and M are 1, and the kernels get no pointer to it.

Every program owns one tile of queries of one batch row and head. Positions, products and sums are in float32 whatever
the inputs are. The fraction of a position is one fused multiply-add from the location, so it does not lose the bits
that the pixel number takes: on large maps the kernel is nearer to float64 than the reference in float32.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 512
"""Elements of a tile of rows x channels: 4 per thread of 4 warps."""
_MAX_ROWS = 64
_INT32_LIMIT = 2**31


@triton.jit
def _locate(
    locations: tl.tensor, sample: tl.tensor, is_row: tl.tensor, height: tl.tensor, width: tl.tensor
) -> tl.tuple:
    """Top left pixel of each sample, the fractions beyond it, and whether any of the four pixels is on the map."""
    at_x = tl.load(locations + 2 * sample, mask=is_row, other=0.0).to(tl.float32)
    at_y = tl.load(locations + 2 * sample + 1, mask=is_row, other=0.0).to(tl.float32)
    x = tl.fma(at_x, width * 1.0, -0.5)
    y = tl.fma(at_y, height * 1.0, -0.5)
    # False for NaN and infinity too, which then count as outside and never become an address.
    is_inside = is_row & (x >= -1.0) & (y >= -1.0) & (x < width) & (y < height)
    left = tl.floor(tl.where(is_inside, x, 0.0))
    top = tl.floor(tl.where(is_inside, y, 0.0))
    part_x = tl.where(is_inside, tl.fma(at_x, width * 1.0, -0.5 - left), 0.0)
    part_y = tl.where(is_inside, tl.fma(at_y, height * 1.0, -0.5 - top), 0.0)
    return left.to(tl.int32), top.to(tl.int32), part_x, part_y, is_inside


@triton.jit
def _pixel(
    first: tl.tensor, row: tl.tensor, column: tl.tensor, is_inside: tl.tensor, is_channel: tl.tensor,
    channel: tl.tensor, height: tl.tensor, width: tl.tensor, STRIDE: tl.constexpr, INDEX: tl.constexpr,
) -> tl.tuple:  # fmt: skip
    """Offsets (R, D) of one pixel per sample, `first` being its level's first, and where that pixel exists."""
    exists = is_inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    pixel = first + (row * width + column).to(INDEX)
    # STRIDE is known to the compiler, which then moves four numbers at once.
    return pixel[:, None] * STRIDE + channel[None, :], exists[:, None] & is_channel[None, :]


@triton.jit
def _map(
    map_idx: tl.tensor, batch: tl.tensor, query: tl.tensor, is_row: tl.tensor, slot: tl.tensor,
    maps: tl.tensor, SLOTS: tl.constexpr, HAS_MAPS: tl.constexpr, INDEX: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """(R,): the row of value that each query's slot reads."""
    if HAS_MAPS:
        chosen = tl.load(map_idx + query * SLOTS + slot, mask=is_row, other=0).to(INDEX)
    else:
        chosen = tl.zeros_like(query).to(INDEX)
    return batch * maps + chosen


@triton.jit
def _tile(queries: tl.tensor, HEADS: tl.constexpr, BLOCK_Q: tl.constexpr, INDEX: tl.constexpr) -> tl.tuple:
    """The program's batch row and head, its queries in (B, Q), its rows in (B, Q, H), and which of them exist."""
    program = tl.program_id(0)
    head = program % HEADS  # neighbouring programs read and write neighbouring memory
    tiles = tl.cdiv(queries, BLOCK_Q)
    query = program // HEADS % tiles * BLOCK_Q + tl.arange(0, BLOCK_Q)
    batch = (program // HEADS // tiles).to(INDEX)
    number = batch * queries + query
    return batch, head, number, number * HEADS + head, query < queries


@triton.jit
def forward_kernel(
    value: tl.tensor, locations: tl.tensor, weights: tl.tensor, map_idx: tl.tensor, out: tl.tensor,
    shapes: tl.tuple, queries: tl.tensor, cells: tl.tensor, maps: tl.tensor,
    HEADS: tl.constexpr, CHANNELS: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr,
    SLOTS: tl.constexpr, HAS_MAPS: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_D: tl.constexpr, INDEX: tl.constexpr,
) -> None:  # fmt: skip
    """``out`` (B, Q, H, D) of a tile of queries of one batch row and head."""
    batch, head, query, rows, is_row = _tile(queries, HEADS, BLOCK_Q, INDEX)
    channel = tl.arange(0, BLOCK_D)
    is_channel = channel < CHANNELS
    plane = value + head * CHANNELS
    total = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    for level in tl.static_range(LEVELS):
        height, width = shapes[3 * level], shapes[3 * level + 1]
        for point in range(POINTS):
            chosen = _map(
                map_idx, batch, query, is_row, point // (POINTS // SLOTS), maps, SLOTS, HAS_MAPS, INDEX
            )
            first = chosen * cells + shapes[3 * level + 2]
            sample = rows * (LEVELS * POINTS) + level * POINTS + point
            left, top, part_x, part_y, is_inside = _locate(locations, sample, is_row, height, width)
            weight = tl.load(weights + sample, mask=is_row, other=0.0).to(tl.float32)
            for corner in tl.static_range(4):
                down, right = corner // 2, corner % 2
                share_y = part_y if down else 1.0 - part_y
                share_x = part_x if right else 1.0 - part_x
                offset, exists = _pixel(
                    first, top + down, left + right, is_inside, is_channel, channel, height, width,
                    HEADS * CHANNELS, INDEX,
                )  # fmt: skip
                pixel = tl.load(plane + offset, mask=exists, other=0.0).to(tl.float32)
                total += (weight * share_y * share_x)[:, None] * pixel
    tl.store(
        out + rows[:, None] * CHANNELS + channel[None, :], total, mask=is_row[:, None] & is_channel[None, :]
    )


@triton.jit
def backward_kernel(
    grad_out: tl.tensor, value: tl.tensor, locations: tl.tensor, weights: tl.tensor, map_idx: tl.tensor,
    grad_value: tl.tensor, grad_locations: tl.tensor, grad_weights: tl.tensor,
    shapes: tl.tuple, queries: tl.tensor, cells: tl.tensor, maps: tl.tensor,
    HEADS: tl.constexpr, CHANNELS: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr,
    SLOTS: tl.constexpr, HAS_MAPS: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_D: tl.constexpr, INDEX: tl.constexpr,
    NEEDS_VALUE: tl.constexpr, NEEDS_SAMPLING: tl.constexpr,
) -> None:  # fmt: skip
    """Gradients of a tile of queries of one batch row and head.

    Those of locations and weights are the program's own. The gradient of value is added atomically, in float32: many
    samples meet in one pixel, in no fixed order.
    """
    batch, head, query, rows, is_row = _tile(queries, HEADS, BLOCK_Q, INDEX)
    channel = tl.arange(0, BLOCK_D)
    is_channel = channel < CHANNELS
    grad = tl.load(
        grad_out + rows[:, None] * CHANNELS + channel[None, :],
        mask=is_row[:, None] & is_channel[None, :],
        other=0.0,
    ).to(tl.float32)
    for level in tl.static_range(LEVELS):
        height, width = shapes[3 * level], shapes[3 * level + 1]
        for point in range(POINTS):
            chosen = _map(
                map_idx, batch, query, is_row, point // (POINTS // SLOTS), maps, SLOTS, HAS_MAPS, INDEX
            )
            first = chosen * cells + shapes[3 * level + 2]
            sample = rows * (LEVELS * POINTS) + level * POINTS + point
            left, top, part_x, part_y, is_inside = _locate(locations, sample, is_row, height, width)
            weight = tl.load(weights + sample, mask=is_row, other=0.0).to(tl.float32)
            slope_x = tl.zeros((BLOCK_Q,), tl.float32)
            slope_y = tl.zeros((BLOCK_Q,), tl.float32)
            sampled = tl.zeros((BLOCK_Q,), tl.float32)
            for corner in tl.static_range(4):
                down, right = corner // 2, corner % 2
                share_y = part_y if down else 1.0 - part_y
                share_x = part_x if right else 1.0 - part_x
                offset, exists = _pixel(
                    first, top + down, left + right, is_inside, is_channel, channel, height, width,
                    HEADS * CHANNELS, INDEX,
                )  # fmt: skip
                offset += head * CHANNELS
                if NEEDS_SAMPLING:
                    pixel = tl.load(value + offset, mask=exists, other=0.0).to(tl.float32)
                    along = tl.sum(grad * pixel, axis=1)
                    sampled += share_y * share_x * along
                    slope_x += share_y * along if right else -share_y * along
                    slope_y += share_x * along if down else -share_x * along
                if NEEDS_VALUE:
                    share = (weight * share_y * share_x)[:, None]
                    tl.atomic_add(grad_value + offset, share * grad, mask=exists, sem="relaxed")
            if NEEDS_SAMPLING:
                tl.store(grad_weights + sample, sampled, mask=is_row)
                tl.store(grad_locations + 2 * sample, slope_x * weight * width, mask=is_row)
                tl.store(grad_locations + 2 * sample + 1, slope_y * weight * height, mask=is_row)


@triton.jit
def gather_kernel(
    grad_out: tl.tensor, locations: tl.tensor, weights: tl.tensor, order: tl.tensor, starts: tl.tensor,
    grad_value: tl.tensor, cells: tl.tensor, first_cell: tl.tensor, height: tl.tensor, width: tl.tensor,
    level: tl.tensor,
    HEADS: tl.constexpr, CHANNELS: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, INDEX: tl.constexpr,
) -> None:  # fmt: skip
    """Gradient of one pixel of value: the sum over the samples around it, in the order of their numbers.

    ``order`` holds the numbers (in B, Q, H, P) of one level's samples, sorted by map, head and top left pixel;
    ``starts`` where each such pixel's samples begin, on a grid with one more row above and column at the left.
    """
    program = tl.program_id(0)
    cell = program % (height * width)
    plane = program // (height * width)  # map and head
    row = cell // width
    column = cell % width
    channel = tl.arange(0, BLOCK_D)
    is_channel = channel < CHANNELS
    total = tl.zeros((BLOCK_D,), tl.float32)
    for corner in tl.static_range(4):
        above, before = row + corner // 2, column + corner % 2
        key = plane.to(INDEX) * ((height + 1) * (width + 1)) + above * (width + 1) + before
        end = tl.load(starts + key + 1)
        for begin in range(tl.load(starts + key), end, BLOCK_N):
            slot = begin + tl.arange(0, BLOCK_N)
            is_row = slot < end
            number = tl.load(order + slot, mask=is_row, other=0).to(INDEX)
            query = number // POINTS  # in (B, Q, H)
            sample = query * (LEVELS * POINTS) + level * POINTS + number % POINTS
            at_x = tl.load(locations + 2 * sample, mask=is_row, other=0.0).to(tl.float32)
            at_y = tl.load(locations + 2 * sample + 1, mask=is_row, other=0.0).to(tl.float32)
            away_x = tl.abs(tl.fma(at_x, width * 1.0, -0.5 - column))
            away_y = tl.abs(tl.fma(at_y, height * 1.0, -0.5 - row))
            share = tl.maximum(1.0 - away_x, 0.0) * tl.maximum(1.0 - away_y, 0.0)
            share *= tl.load(weights + sample, mask=is_row, other=0.0).to(tl.float32)
            grad = tl.load(
                grad_out + query[:, None] * CHANNELS + channel[None, :],
                mask=is_row[:, None] & is_channel[None, :],
                other=0.0,
            ).to(tl.float32)
            total += tl.sum(share[:, None] * grad, axis=0)
    chosen = (plane // HEADS).to(INDEX)
    pixel = (chosen * cells + first_cell + cell) * HEADS + plane % HEADS
    tl.store(grad_value + pixel * CHANNELS + channel, total, mask=is_channel)


def forward(
    value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor, map_idx: Tensor | None
) -> Tensor:
    """Launch the forward kernel.

    Args:
        value: (B * N, S, H, D), contiguous like the others; float32, float16 or bfloat16, each its own.
        shapes: h and w of each level in turn.
        locations: (B, Q, H, L, P, 2).
        weights: (B, Q, H, L, P).
        map_idx: (B, Q, M), int64, in 0..N-1 (not checked), or None.

    Returns:
        (B, Q, H * D), value's dtype.
    """
    cells, heads, channels = value.shape[1:]
    batch, queries = locations.shape[:2]
    out = value.new_empty(batch, queries, heads * channels)
    if not (out.numel() and weights.numel()):
        return out.zero_()
    sizes, slots = _sizes(value, weights), _slots(map_idx)
    grid = (batch * heads * triton.cdiv(queries, sizes["BLOCK_Q"]),)
    with torch.cuda.device_of(value):
        forward_kernel[grid](
            value, locations, weights, map_idx, out, _levels(shapes), queries, cells, len(value) // batch,
            **sizes, **slots,
        )  # fmt: skip
    return out


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
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the backward kernels; arguments as for `forward`.

    Args:
        grad_out: (B, Q, H * D), contiguous, value's dtype.
        value: see `forward`.
        shapes: see `forward`.
        locations: see `forward`.
        weights: see `forward`.
        map_idx: see `forward`.
        needs_value: whether the gradient of value is wanted.
        needs_sampling: whether those of locations and weights are.
        deterministic: add what meets in a pixel in a fixed order, after a sort, rather than atomically.

    Returns:
        Gradients of value, locations and weights in their shapes and dtypes; (0,) in place of one that is not wanted.
    """
    cells, heads = value.shape[1:3]
    batch, queries = locations.shape[:2]
    grad_locations = torch.zeros_like(locations) if needs_sampling else locations.new_empty(0)
    grad_weights = torch.zeros_like(weights) if needs_sampling else weights.new_empty(0)
    is_empty = not (grad_out.numel() and weights.numel())
    by_atomics = needs_value and not (deterministic or is_empty)
    if by_atomics:
        grad_value = torch.zeros_like(value, dtype=torch.float32)
    else:
        grad_value = torch.zeros_like(value) if needs_value else value.new_empty(0)
    if is_empty:
        return grad_value, grad_locations, grad_weights
    sizes, slots = _sizes(value, weights), _slots(map_idx)
    with torch.cuda.device_of(value):
        if by_atomics or needs_sampling:
            grid = (batch * heads * triton.cdiv(queries, sizes["BLOCK_Q"]),)
            backward_kernel[grid](
                grad_out, value, locations, weights, map_idx, grad_value, grad_locations, grad_weights,
                _levels(shapes), queries, cells, len(value) // batch, **sizes, **slots,
                NEEDS_VALUE=by_atomics, NEEDS_SAMPLING=needs_sampling,
            )  # fmt: skip
        if needs_value and deterministic:
            _gather(grad_out, shapes, locations, weights, map_idx, grad_value, sizes)
    return grad_value.to(value.dtype) if needs_value else grad_value, grad_locations, grad_weights


def _gather(
    grad_out: Tensor,
    shapes: Sequence[int],
    locations: Tensor,
    weights: Tensor,
    map_idx: Tensor | None,
    grad_value: Tensor,
    sizes: dict[str, Any],
) -> None:
    """Fill ``grad_value`` level by level: sort the samples by their pixel, then sum per pixel."""
    rows, cells, heads, _ = grad_value.shape
    batch, points = len(weights), weights.shape[-1]
    constants = {name: size for name, size in sizes.items() if name != "BLOCK_Q"}
    plane = torch.arange(batch, device=locations.device)[:, None, None] * (rows // batch)  # (B, 1, 1)
    if map_idx is not None:
        plane = plane + map_idx.repeat_interleave(points // map_idx.shape[2], dim=2)  # (B, Q, P)
    plane = plane[:, :, None] * heads + torch.arange(heads, device=locations.device)[:, None]  # (B, Q, H, P)
    first_cell = 0
    for level, (height, width) in enumerate(zip(shapes[::2], shapes[1::2], strict=True)):
        spots = (height + 1) * (
            width + 1
        )  # top left pixels: also one row above the map and a column before it
        x = locations[:, :, :, level, :, 0].float() * width - 0.5  # (B, Q, H, P)
        y = locations[:, :, :, level, :, 1].float() * height - 0.5
        is_inside = (x >= -1) & (y >= -1) & (x < width) & (y < height)
        column, row = (torch.where(is_inside, at, 0).floor().long() for at in (x, y))
        key = plane * spots + (row + 1) * (width + 1) + column + 1
        key = torch.where(is_inside, key, rows * heads * spots)  # those outside come last, after every pixel
        key, order = torch.sort(key.flatten(), stable=True)
        starts = torch.searchsorted(key, torch.arange(rows * heads * spots + 1, device=key.device))
        gather_kernel[(rows * heads * height * width,)](
            grad_out, locations, weights, order, starts, grad_value, cells, first_cell, height, width, level,
            BLOCK_N=sizes["BLOCK_Q"], **constants,
        )  # fmt: skip
        first_cell += height * width


def _sizes(value: Tensor, weights: Tensor) -> dict[str, Any]:
    """What a kernel is compiled for."""
    *_, heads, channels = value.shape
    *_, levels, points = weights.shape
    block_d = triton.next_power_of_2(channels)
    largest = max(value.numel(), 2 * weights.numel(), len(weights) * weights.shape[1] * heads * block_d)
    return {
        "HEADS": heads,
        "CHANNELS": channels,
        "LEVELS": levels,
        "POINTS": points,
        "BLOCK_Q": max(1, min(_MAX_ROWS, _TILE // block_d)),
        "BLOCK_D": block_d,
        "INDEX": tl.int64 if largest >= _INT32_LIMIT else tl.int32,
        "enable_fp_fusion": True,  # said here because Triton 3.9 warns that its default will change
    }


def _slots(map_idx: Tensor | None) -> dict[str, Any]:
    return {"SLOTS": 1 if map_idx is None else map_idx.shape[2], "HAS_MAPS": map_idx is not None}


def _levels(shapes: Sequence[int]) -> tuple[int, ...]:
    """(h, w, number of the first pixel) of each level, one after the other."""
    levels: list[int] = []
    start = 0
    for height, width in zip(shapes[::2], shapes[1::2], strict=True):
        levels += (height, width, start)
        start += height * width
    return tuple(levels)


def runs_on(tensor: Tensor) -> bool:
    """Whether the kernels can run where the tensor is: on a GPU, or anywhere in Triton's interpreter.

    The interpreter is chosen by the environment variable TRITON_INTERPRET=1 when this module is imported.
    """
    return tensor.is_cuda or not isinstance(forward_kernel, triton.JITFunction)

"""The deformable-attention kernels as operators of torch: shapes without data, gradients, batched gradients.

Needs neither Triton nor numba until a kernel is launched. `torch.compile` sees one operator and does not look inside.
Legend: see :mod:`perception.ops.deformable_attention`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("perception::deformable_attention", mutates_args=())
def deformable_attention(
    value: Tensor,
    shapes: Sequence[int],
    locations: Tensor,
    weights: Tensor,
    map_idx: Tensor | None,
    kernel: str,
) -> Tensor:
    """(B, Q, H * D) as :func:`perception.ops.multi_scale_deformable_attention`, by a kernel.

    Differentiable once in its three tensors. Always deterministic forward; backward, Triton's gradient of value is
    added atomically unless `torch.use_deterministic_algorithms` is on, which sorts first and takes longer.

    Args:
        value: (B * N, S, H, D); for Triton float32, float16 or bfloat16, as the others.
        shapes: h and w of each level in turn.
        locations: (B, Q, H, L, P, 2).
        weights: (B, Q, H, L, P).
        map_idx: (B, Q, M), int64, in 0..N-1, or None for N = 1.
        kernel: "triton" or "numba".

    Raises:
        ValueError: Triton is to run where there is no GPU under these tensors, nor Triton's interpreter; on a CPU,
            `map_idx` is out of range.
    """
    tensors = [x.contiguous() for x in (value, locations, weights)]
    return _kernels(kernel, value).forward(tensors[0], shapes, tensors[1], tensors[2], _contiguous(map_idx))


@torch.library.custom_op("perception::deformable_attention_backward", mutates_args=())
def deformable_attention_backward(
    grad_out: Tensor,
    value: Tensor,
    shapes: Sequence[int],
    locations: Tensor,
    weights: Tensor,
    map_idx: Tensor | None,
    kernel: str,
    needs_value: bool,
    needs_sampling: bool,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights; (0,) for those that are not wanted."""
    return _kernels(kernel, value).backward(
        grad_out.to(value.dtype).contiguous(),
        value.contiguous(),
        shapes,
        locations.contiguous(),
        weights.contiguous(),
        _contiguous(map_idx),
        needs_value=needs_value,
        needs_sampling=needs_sampling,
        deterministic=deterministic,
    )


def check_map_idx(map_idx: Tensor, num_maps: int) -> None:
    """Refuse, on a CPU, numbers beyond 0..num_maps - 1 with ValueError; on CUDA looking would stop the stream."""
    if map_idx.is_cpu and map_idx.numel() and not 0 <= int(map_idx.min()) <= int(map_idx.max()) < num_maps:
        raise ValueError(
            f"map_idx must be in 0..{num_maps - 1}, found {int(map_idx.min())}..{int(map_idx.max())}"
        )


def _contiguous(map_idx: Tensor | None) -> Tensor | None:
    return None if map_idx is None else map_idx.contiguous()


def _kernels(kernel: str, value: Tensor) -> Any:
    if kernel == "numba":
        from perception.ops import deformable_attention_cpu

        return deformable_attention_cpu
    from perception.ops import deformable_attention_triton

    if not deformable_attention_triton.runs_on(value):
        raise ValueError(
            f"the Triton kernel needs CUDA tensors, found {value.device}: move them, take "
            "implementation='auto', or set TRITON_INTERPRET=1 before Triton is imported (slow; for tests)"
        )
    return deformable_attention_triton


@deformable_attention.register_fake
def _(
    value: Tensor,
    shapes: Sequence[int],
    locations: Tensor,
    weights: Tensor,
    map_idx: Tensor | None,
    kernel: str,
) -> Tensor:
    heads, channels = value.shape[2:]
    return value.new_empty(locations.shape[0], locations.shape[1], heads * channels)


@deformable_attention_backward.register_fake
def _(
    grad_out: Tensor,
    value: Tensor,
    shapes: Sequence[int],
    locations: Tensor,
    weights: Tensor,
    map_idx: Tensor | None,
    kernel: str,
    needs_value: bool,
    needs_sampling: bool,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    wanted = ((value, needs_value), (locations, needs_sampling), (weights, needs_sampling))
    grads = [x.new_empty(x.shape if is_wanted else (0,)) for x, is_wanted in wanted]
    return grads[0], grads[1], grads[2]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.shapes, locations, weights, map_idx, ctx.kernel = inputs
    ctx.save_for_backward(value, locations, weights, map_idx)


def _differentiate(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    value, locations, weights, map_idx = ctx.saved_tensors
    needs_value, _, needs_locations, needs_weights = ctx.needs_input_grad[:4]
    grads = deformable_attention_backward(
        grad_out,
        value,
        ctx.shapes,
        locations,
        weights,
        map_idx,
        ctx.kernel,
        needs_value,
        needs_locations or needs_weights,
        torch.are_deterministic_algorithms_enabled(),
    )
    return (
        grads[0] if needs_value else None,
        None,
        grads[1] if needs_locations else None,
        grads[2] if needs_weights else None,
        None,
        None,
    )


deformable_attention.register_autograd(_differentiate, setup_context=_save)


def _fold(info: Any, in_dims: Sequence[int | None], tensors: Sequence[Tensor | None]) -> list[Any]:
    """Puts vmap's axis into the batch: every tensor has the batch first."""
    folded: list[Tensor | None] = []
    for tensor, dim in zip(tensors, in_dims, strict=True):
        if tensor is None:
            folded.append(None)
            continue
        batched = tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        folded.append(batched.flatten(0, 1))
    return folded


@deformable_attention.register_vmap
def _(
    info: Any,
    in_dims: Sequence[Any],
    value: Tensor,
    shapes: Sequence[int],
    locations: Tensor,
    weights: Tensor,
    map_idx: Tensor | None,
    kernel: str,
) -> tuple[Tensor, int]:
    dims = (in_dims[0], in_dims[2], in_dims[3], in_dims[4])
    value, locations, weights, map_idx = _fold(info, dims, (value, locations, weights, map_idx))
    out = deformable_attention(value, shapes, locations, weights, map_idx, kernel)
    return out.unflatten(0, (info.batch_size, len(out) // info.batch_size)), 0


@deformable_attention_backward.register_vmap
def _(
    info: Any,
    in_dims: Sequence[Any],
    grad_out: Tensor,
    value: Tensor,
    shapes: Sequence[int],
    locations: Tensor,
    weights: Tensor,
    map_idx: Tensor | None,
    kernel: str,
    *flags: bool,
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    dims = (in_dims[0], in_dims[1], in_dims[3], in_dims[4], in_dims[5])
    grad_out, value, locations, weights, map_idx = _fold(
        info, dims, (grad_out, value, locations, weights, map_idx)
    )
    grads = deformable_attention_backward(
        grad_out, value, shapes, locations, weights, map_idx, kernel, *flags
    )
    wanted = (flags[0], flags[1], flags[1])
    unfolded = [
        x.unflatten(0, (info.batch_size, len(x) // info.batch_size)) if is_wanted else x
        for x, is_wanted in zip(grads, wanted, strict=True)
    ]
    return tuple(unfolded), tuple(0 if is_wanted else None for is_wanted in wanted)

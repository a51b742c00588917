"""The deformable-attention kernels as operators of torch: shapes without data, gradients, batched gradients.

Needs no Triton until a kernel is launched. `torch.compile` sees one operator and does not look inside.
Legend: see :mod:`perception.ops.deformable_attention`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("perception::deformable_attention", mutates_args=())
def deformable_attention(value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    """(B, Q, H * D) as :func:`perception.ops.multi_scale_deformable_attention`, by the Triton kernel.

    Differentiable once in its three tensors. Always deterministic forward; backward, the gradient of value is added
    atomically unless `torch.use_deterministic_algorithms` is on, which sorts first and takes longer.

    Args:
        value: (B, S, H, D), float32, float16 or bfloat16, as the others.
        shapes: h and w of each level in turn.
        locations: (B, Q, H, L, P, 2).
        weights: (B, Q, H, L, P).

    Raises:
        ValueError: there is no GPU under these tensors, nor Triton's interpreter.
    """
    kernels = _kernels(value)
    return kernels.forward(value.contiguous(), shapes, locations.contiguous(), weights.contiguous())


@torch.library.custom_op("perception::deformable_attention_backward", mutates_args=())
def deformable_attention_backward(
    grad_out: Tensor,
    value: Tensor,
    shapes: Sequence[int],
    locations: Tensor,
    weights: Tensor,
    needs_value: bool,
    needs_sampling: bool,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights; (0,) for those that are not wanted."""
    kernels = _kernels(value)
    return kernels.backward(
        grad_out.to(value.dtype).contiguous(),
        value.contiguous(),
        shapes,
        locations.contiguous(),
        weights.contiguous(),
        needs_value=needs_value,
        needs_sampling=needs_sampling,
        deterministic=deterministic,
    )


def _kernels(value: Tensor) -> Any:
    from perception.ops import deformable_attention_triton

    if not deformable_attention_triton.runs_on(value):
        raise ValueError(
            f"the Triton kernel needs CUDA tensors, found {value.device}: move them, take "
            "implementation='reference', or set TRITON_INTERPRET=1 before Triton is imported (slow; for tests)"
        )
    return deformable_attention_triton


@deformable_attention.register_fake
def _(value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    batch, _, heads, channels = value.shape
    return value.new_empty(batch, locations.shape[1], heads * channels)


@deformable_attention_backward.register_fake
def _(
    grad_out: Tensor,
    value: Tensor,
    shapes: Sequence[int],
    locations: Tensor,
    weights: Tensor,
    needs_value: bool,
    needs_sampling: bool,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    wanted = ((value, needs_value), (locations, needs_sampling), (weights, needs_sampling))
    grads = [x.new_empty(x.shape if is_wanted else (0,)) for x, is_wanted in wanted]
    return grads[0], grads[1], grads[2]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.shapes, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)


def _differentiate(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, None, Tensor | None, Tensor | None]:
    value, locations, weights = ctx.saved_tensors
    needs_value, _, needs_locations, needs_weights = ctx.needs_input_grad
    grads = deformable_attention_backward(
        grad_out,
        value,
        ctx.shapes,
        locations,
        weights,
        needs_value,
        needs_locations or needs_weights,
        torch.are_deterministic_algorithms_enabled(),
    )
    return (
        grads[0] if needs_value else None,
        None,
        grads[1] if needs_locations else None,
        grads[2] if needs_weights else None,
    )


deformable_attention.register_autograd(_differentiate, setup_context=_save)


def _fold(info: Any, in_dims: Sequence[int | None], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Puts vmap's axis into the batch: every tensor has the batch first."""
    folded = []
    for tensor, dim in zip(tensors, in_dims, strict=True):
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
) -> tuple[Tensor, int]:
    dims = (in_dims[0], in_dims[2], in_dims[3])
    value, locations, weights = _fold(info, dims, (value, locations, weights))
    out = deformable_attention(value, shapes, locations, weights)
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
    *flags: bool,
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    dims = (in_dims[0], in_dims[1], in_dims[3], in_dims[4])
    folded = _fold(info, dims, (grad_out, value, locations, weights))
    grads = deformable_attention_backward(folded[0], folded[1], shapes, folded[2], folded[3], *flags)
    wanted = (flags[0], flags[1], flags[1])
    size = (info.batch_size, len(folded[0]) // info.batch_size)
    return (
        tuple(x.unflatten(0, size) if is_wanted else x for x, is_wanted in zip(grads, wanted, strict=True)),
        tuple(0 if is_wanted else None for is_wanted in wanted),
    )

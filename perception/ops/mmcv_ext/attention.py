"""``ms_deform_attn_forward`` and ``ms_deform_attn_backward`` of ``mmcv._ext``."""

import torch
from torch import Tensor

from perception.ops.deformable_attention import multi_scale_deformable_attention


def _shapes(spatial_shapes: Tensor) -> list[tuple[int, int]]:
    return [(int(height), int(width)) for height, width in spatial_shapes.tolist()]


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int = 64,
) -> Tensor:
    """Returns (B, Q, C); arguments as :func:`perception.ops.multi_scale_deformable_attention`.

    ``value_level_start_index`` follows from the shapes and ``im2col_step`` only splits work; neither is read.
    """
    return multi_scale_deformable_attention(
        value, _shapes(value_spatial_shapes), sampling_locations, attention_weights
    )


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int = 64,
) -> None:
    """Writes the gradients into the last three tensors. Runs the forward again under autograd."""
    inputs = [x.detach().requires_grad_() for x in (value, sampling_locations, attention_weights)]
    with torch.enable_grad():
        output = multi_scale_deformable_attention(
            inputs[0], _shapes(value_spatial_shapes), inputs[1], inputs[2]
        )
    grads = torch.autograd.grad(output, inputs, grad_output)
    for target, grad in zip((grad_value, grad_sampling_loc, grad_attn_weight), grads, strict=True):
        target.copy_(grad)

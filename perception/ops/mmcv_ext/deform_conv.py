"""``modulated_deform_conv_*`` (DCN v2) and ``deform_conv_*`` (DCN v1) of ``mmcv._ext``.

torchvision's operator does the work where it can be loaded, has a kernel for the device and agrees with ours; plain
torch everywhere else. (Where mmcv is compiled, its own operators are used and this module is not.)

Legend: B batch, C and O channels in and out, K = kernel_h * kernel_w taps, G deformable groups, h x w the
output's size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from perception.utils import get_logger

_Op = Callable[..., Tensor]
_Keys = tuple[tuple[str, str], tuple[str, str], tuple[str, str]]
# What mmcv calls (vertical, horizontal) stride, padding and dilation in either version.
_V1_KEYS: _Keys = (("dH", "dW"), ("padH", "padW"), ("dilationH", "dilationW"))
_V2_KEYS: _Keys = (("stride_h", "stride_w"), ("pad_h", "pad_w"), ("dilation_h", "dilation_w"))


@dataclass(frozen=True, kw_only=True)
class ConvGeometry:
    """A convolution's settings, each pair as (vertical, horizontal)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    deform_groups: int


def reference_deformable_conv2d(
    image: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    geometry: ConvGeometry,
) -> Tensor:
    """Convolution whose taps are moved by offset and scaled by mask, in plain torch; differentiable in every tensor.

    Source: Zhu et al., Deformable ConvNets v2 (2019), eq. 1; without a mask Dai et al., v1 (2017), eq. 2.

    Args:
        image: (B, C, H, W).
        offset: (B, G * K * 2, h, w), pixels, (down, right) of each tap.
        mask: (B, G * K, h, w), 0..1, or None for ones.
        weight: (O, C / groups, kernel_h, kernel_w).
        bias: (O,) or None.
        geometry: strides, padding and groups.

    Returns:
        (B, O, h, w).
    """
    batch, channels, height, width = image.shape
    groups, taps = geometry.deform_groups, geometry.kernel[0] * geometry.kernel[1]
    rows, cols = offset.shape[2:]
    shift = offset.view(batch, groups, taps, 2, rows, cols)
    tap = torch.arange(taps, device=image.device)

    def position(count: int, axis: int, index: Tensor) -> Tensor:
        start = torch.arange(count, device=image.device) * geometry.stride[axis] - geometry.padding[axis]
        return start + (index * geometry.dilation[axis])[:, None]

    y = position(rows, 0, tap // geometry.kernel[1])[:, :, None] + shift[:, :, :, 0]  # (B, G, K, h, w)
    x = position(cols, 1, tap % geometry.kernel[1])[:, None, :] + shift[:, :, :, 1]
    grid = torch.stack(
        ((2 * x + 1) / width - 1, (2 * y + 1) / height - 1), dim=-1
    )  # pixel centres at integers
    samples = F.grid_sample(
        image.reshape(batch * groups, channels // groups, height, width),
        grid.view(batch * groups, taps * rows, cols, 2).to(image.dtype),
        align_corners=False,
    ).view(batch, groups, channels // groups, taps, rows, cols)
    if mask is not None:
        samples = samples * mask.view(batch, groups, 1, taps, rows, cols)
    out = F.conv2d(  # the columns of all taps, times the flattened kernel
        samples.reshape(batch, channels * taps, rows, cols),
        weight.reshape(len(weight), -1, 1, 1),
        bias,
        groups=geometry.groups,
    )
    return out


def deformable_conv2d(
    image: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    geometry: ConvGeometry,
) -> Tensor:
    """As `reference_deformable_conv2d`, by torchvision's operator where it works on this device."""
    native = torchvision_op(image.device.type)
    if native is None:
        return reference_deformable_conv2d(image, offset, mask, weight, bias, geometry)
    return _call(native, image, offset, mask, weight, bias, geometry)


@cache
def torchvision_op(device: str) -> _Op | None:
    """`torchvision.ops.deform_conv2d`, or None where it can't be loaded, has no kernel or differs from ours.

    It is imported here, at the first use: a wheel that does not fit the installed torch fails in many ways.

    Args:
        device: type of the tensors' device, "cpu" or "cuda".
    """
    try:
        from torchvision.ops import deform_conv2d

        generator = torch.Generator().manual_seed(0)
        image, offset, mask, weight = (
            torch.randn(shape, generator=generator).to(device)
            for shape in ((1, 4, 6, 5), (1, 18, 3, 3), (1, 9, 3, 3), (6, 4, 3, 3))
        )
        geometry = ConvGeometry(
            kernel=(3, 3), stride=(2, 2), padding=(1, 1), dilation=(1, 1), groups=1, deform_groups=1
        )
        arguments = (image, offset, mask.sigmoid(), weight, None, geometry)
        error = (_call(deform_conv2d, *arguments) - reference_deformable_conv2d(*arguments)).abs().max()
    except (ImportError, OSError, RuntimeError, AttributeError, NotImplementedError) as reason:
        get_logger(__name__).debug("deformable convolutions on %s run in plain torch: %s", device, reason)
        return None
    if float(error) > 1e-2:  # TF32 convolutions err by some 1e-3
        get_logger(__name__).warning(
            "torchvision's deform_conv2d on %s differs from the definition by %g; plain torch is used",
            device,
            error,
        )
        return None
    return deform_conv2d


def _call(
    native: _Op,
    image: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    geometry: ConvGeometry,
) -> Tensor:
    dtype = image.dtype
    if dtype not in (
        torch.float32,
        torch.float64,
    ):  # there is no bfloat16 kernel, and on CPUs none for halves
        image, offset, weight = image.float(), offset.float(), weight.float()
        mask, bias = (None if x is None else x.float() for x in (mask, bias))
    settings = (geometry.stride, geometry.padding, geometry.dilation)
    return native(image, offset, weight, bias, *settings, mask).to(dtype)


def _backward(
    image: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    geometry: ConvGeometry,
    grad_output: Tensor,
) -> list[Tensor]:
    """Gradients of image, offset, weight and the mask, if any. Runs the forward again under autograd."""
    inputs = [x.detach().requires_grad_() for x in (image, offset, weight, mask) if x is not None]
    with torch.enable_grad():
        output = deformable_conv2d(
            inputs[0], inputs[1], inputs[3] if mask is not None else None, inputs[2], None, geometry
        )
    return list(torch.autograd.grad(output, inputs, grad_output))


def _geometry(weight: Tensor, settings: dict[str, int], keys: _Keys) -> ConvGeometry:
    stride, padding, dilation = ((settings[vertical], settings[horizontal]) for vertical, horizontal in keys)
    return ConvGeometry(
        kernel=(weight.shape[2], weight.shape[3]),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=settings["group"],
        deform_groups=settings["deformable_group"],
    )


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    *,
    with_bias: bool,
    **settings: int,
) -> None:
    """Writes into output (B, O, h, w). ``ones`` and ``columns`` (scratch space) are unused."""
    output.copy_(
        deformable_conv2d(
            input, offset, mask, weight, bias if with_bias else None, _geometry(weight, settings, _V2_KEYS)
        )
    )


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    *,
    with_bias: bool,
    **settings: int,
) -> None:
    """Writes into the five ``grad_*`` tensors."""
    grads = _backward(input, offset, mask, weight, _geometry(weight, settings, _V2_KEYS), grad_output)
    for target, grad in zip((grad_input, grad_offset, grad_weight, grad_mask), grads, strict=True):
        target.copy_(grad)
    if with_bias:
        grad_bias.copy_(grad_output.sum((0, 2, 3)))


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    **settings: int,
) -> None:
    """Writes into output (B, O, h, w)."""
    output.copy_(deformable_conv2d(input, offset, None, weight, None, _geometry(weight, settings, _V1_KEYS)))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **settings: int,
) -> None:
    """Writes into grad_input and grad_offset."""
    grads = _backward(input, offset, None, weight, _geometry(weight, settings, _V1_KEYS), grad_output)
    grad_input.copy_(grads[0])
    grad_offset.copy_(grads[1])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    *,
    scale: float,
    **settings: int,
) -> None:
    """Adds scale times the weight's gradient to grad_weight."""
    weight = torch.zeros_like(grad_weight)
    grads = _backward(input, offset, None, weight, _geometry(weight, settings, _V1_KEYS), grad_output)
    grad_weight.add_(grads[2], alpha=scale)

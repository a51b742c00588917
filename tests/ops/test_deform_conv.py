import sys
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmcv.ops import DeformConv2dPack, ModulatedDeformConv2dPack, deform_conv2d, modulated_deform_conv2d
from scipy.ndimage import map_coordinates
from torch.autograd import gradcheck

from perception.ops.mmcv_ext import deform_conv

SETTINGS = dict(stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2, deform_groups=2)
PLAIN = list(SETTINGS.values())[:4]  # as a convolution without offsets takes them


def make_inputs(seed=0):
    rng = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    out = F.conv2d(rand(1, 4, 5, 6), rand(2, 2, 3, 2), None, *PLAIN).shape[2:]
    return rand(2, 4, 5, 6), rand(2, 24, *out), rand(2, 12, *out).sigmoid(), rand(6, 2, 3, 2), rand(6)


def naive(image, offset, mask, weight, bias):
    """One tap at a time, bilinear samples from scipy; zero outside the map."""
    out = np.zeros((2, 6, *offset.shape[2:]))
    padded = np.pad(image, ((0, 0), (0, 0), (9, 9), (9, 9)))
    for b, o, i, j in np.ndindex(out.shape):
        total = bias[o]
        for c, ky, kx in np.ndindex(weight.shape[1:]):
            channel = c + (o // 3) * 2  # two groups of two channels in, three out
            tap = (channel // 2) * 6 + ky * 2 + kx
            y = i * 2 - 1 + ky + offset[b, 2 * tap, i, j]
            x = j * 1 - 2 + kx * 2 + offset[b, 2 * tap + 1, i, j]
            sample = map_coordinates(padded[b, channel], [[y + 9], [x + 9]], order=1)[0]
            total += weight[o, c, ky, kx] * sample * mask[b, tap, i, j]
        out[b, o, i, j] = total
    return out


def run(image, offset, mask, weight, bias):
    return modulated_deform_conv2d(image, offset, mask, weight, bias, *SETTINGS.values())


def run_plain(image, offset, weight):
    return deform_conv2d(image, offset, weight, *SETTINGS.values())


def test_definition():
    inputs = make_inputs()
    np.testing.assert_allclose(run(*inputs).numpy(), naive(*(x.numpy() for x in inputs)), atol=1e-10)


def test_without_offset_it_is_a_convolution():
    image, offset, mask, weight, bias = make_inputs()
    expected = F.conv2d(image, weight, bias, *PLAIN)
    torch.testing.assert_close(run(image, 0 * offset, 0 * mask + 1, weight, bias), expected)
    expected = F.conv2d(image, weight, None, *PLAIN)
    torch.testing.assert_close(run_plain(image, 0 * offset, weight), expected)


def test_the_first_version_is_the_second_with_a_mask_of_ones():
    image, offset, mask, weight, _ = make_inputs()
    expected = run(image, offset, 0 * mask + 1, weight, None)
    torch.testing.assert_close(run_plain(image, offset, weight), expected)


def test_gradcheck():
    inputs = [x.requires_grad_() for x in make_inputs()]
    assert gradcheck(run, inputs, fast_mode=True)
    image, offset, _, weight, _ = inputs
    assert gradcheck(run_plain, (image, offset, weight), fast_mode=True)


@pytest.mark.parametrize("layer", [DeformConv2dPack, ModulatedDeformConv2dPack])
def test_layers_train(layer):
    torch.manual_seed(0)
    module = layer(4, 8, kernel_size=3, padding=1)
    module(torch.randn(2, 4, 6, 7)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    assert module.conv_offset.weight.grad.abs().max() > 0


@pytest.fixture
def as_torchvision(monkeypatch):
    """Puts a function in the place of torchvision's operator, which most machines of this project don't have."""

    def put(function):
        module = types.ModuleType("torchvision.ops")
        module.deform_conv2d = function
        monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
        monkeypatch.setitem(sys.modules, "torchvision.ops", module)
        deform_conv.torchvision_op.cache_clear()

    yield put
    deform_conv.torchvision_op.cache_clear()


def torchvisions_order(input, offset, weight, bias, stride, padding, dilation, mask):
    """The definition under torchvision's signature."""
    groups = input.shape[1] // weight.shape[1]
    kernel = tuple(weight.shape[2:])
    deform_groups = offset.shape[1] // (2 * kernel[0] * kernel[1])
    geometry = deform_conv.ConvGeometry(
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        deform_groups=deform_groups,
    )
    return deform_conv.reference_deformable_conv2d(input, offset, mask, weight, bias, geometry)


def test_an_operator_that_agrees_is_used(as_torchvision):
    calls = []

    def native(*arguments):
        calls.append(arguments[0].dtype)
        return torchvisions_order(*arguments)

    as_torchvision(native)
    inputs = [x.requires_grad_() for x in make_inputs()]
    np.testing.assert_allclose(
        run(*inputs).detach().numpy(), naive(*(x.detach().numpy() for x in inputs)), atol=1e-10
    )
    assert calls == [torch.float32, torch.float64]  # once to compare, then ours
    assert gradcheck(run, inputs, fast_mode=True)
    out = run(*(x.detach().bfloat16() for x in inputs))
    assert out.dtype == torch.bfloat16
    assert calls[-1] == torch.float32


@pytest.mark.parametrize("error", [ImportError, RuntimeError, AttributeError])
def test_an_operator_that_fails_is_not_used(as_torchvision, error):
    def native(*arguments):
        raise error("no kernel")

    as_torchvision(native)
    inputs = make_inputs()
    np.testing.assert_allclose(run(*inputs).numpy(), naive(*(x.numpy() for x in inputs)), atol=1e-10)


def test_an_operator_that_differs_is_not_used(as_torchvision):
    as_torchvision(lambda *arguments: torchvisions_order(*arguments) + 1)
    inputs = make_inputs()
    np.testing.assert_allclose(run(*inputs).numpy(), naive(*(x.numpy() for x in inputs)), atol=1e-10)


def test_torchvisions_own_operator():
    if deform_conv.torchvision_op("cpu") is None:
        pytest.skip("torchvision can't be loaded here")
    inputs = make_inputs()
    np.testing.assert_allclose(run(*inputs).numpy(), naive(*(x.numpy() for x in inputs)), atol=1e-10)

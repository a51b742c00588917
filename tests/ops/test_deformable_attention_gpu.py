"""The kernels at real sizes on a GPU."""

import pytest
import torch

from perception.ops import multi_scale_deformable_attention
from perception.ops.mmcv_finder import uses_fallback
from tests.ops.test_deformable_attention_kernels import (
    TOLERANCE,
    check,
    expect,
    make_grad,
    make_inputs,
    run,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]
SIZES = {
    "temporal": dict(batch=2, queries=2500, heads=8, channels=32, shapes=((200, 200),), points=4),
    "spatial": dict(
        batch=3, queries=1111, heads=8, channels=32, shapes=((58, 100), (29, 50), (15, 25)), points=8
    ),
    "odd": dict(batch=2, queries=77, heads=3, channels=50, shapes=((7, 9), (31, 5)), points=3),
    "wide": dict(batch=1, queries=33, heads=1, channels=1100, shapes=((20, 30),), points=2),
}


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("name", SIZES)
def test_matches_the_reference(name, dtype, deterministic):
    inputs = make_inputs("cuda", **SIZES[name], dtype=dtype)
    grad = make_grad(inputs)
    found = run(inputs, grad, "triton", deterministic=deterministic)
    check(found, expect(inputs, grad), TOLERANCE[dtype])


def test_deterministic_means_the_same_bits():
    inputs = make_inputs("cuda", **SIZES["spatial"])
    grad = make_grad(inputs)
    first = run(inputs, grad, "auto", deterministic=True)
    for _ in range(5):
        for x, y in zip(run(inputs, grad, "auto", deterministic=True), first, strict=True):
            assert torch.equal(x, y)


def test_indices_beyond_32_bits():
    """The last pixels of a value with 2^31 elements and more: 4 GiB."""
    cells = 2**31 // (8 * 256) + 64
    value = torch.zeros(1, cells, 8, 256, device="cuda", dtype=torch.bfloat16)
    value[0, -1] = 1
    locations = torch.full((1, 1, 8, 1, 1, 2), 0.5, device="cuda")
    locations[..., 1] = (cells - 0.5) / cells
    weights = torch.ones(1, 1, 8, 1, 1, device="cuda")
    out = multi_scale_deformable_attention(value, [(cells, 1)], locations, weights, implementation="triton")
    torch.testing.assert_close(out.float(), torch.ones_like(out).float(), atol=0.1, rtol=0)


def test_autocast_and_compile():
    value, shapes, locations, weights = make_inputs("cuda", **SIZES["spatial"])
    linear = torch.nn.Linear(32, 32, device="cuda")

    def attend(value):
        return multi_scale_deformable_attention(linear(value), shapes, locations, weights).sum()

    with torch.autocast("cuda", torch.bfloat16):
        plain = attend(value)
        compiled = torch.compile(attend, fullgraph=True)(value)
    (expected,) = torch.autograd.grad(plain, linear.weight)
    (found,) = torch.autograd.grad(compiled, linear.weight)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2 * float(expected.abs().max()))


@pytest.mark.skipif(uses_fallback(), reason="mmcv has no compiled operators here")
@pytest.mark.parametrize("name", ["temporal", "spatial"])
def test_matches_mmcv(name):
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    value, shapes, locations, weights = make_inputs("cuda", **SIZES[name])
    starts = torch.tensor([0] + [h * w for h, w in shapes], device="cuda").cumsum(0)[:-1]
    sides = torch.tensor(shapes, device="cuda")
    expected = MultiScaleDeformableAttnFunction.apply(value, sides, starts, locations, weights, 64)
    found = multi_scale_deformable_attention(value, shapes, locations, weights, implementation="triton")
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)

import runpy

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.autograd import gradcheck

from perception.ops import deformable_attention as module
from perception.ops import multi_scale_deformable_attention
from perception.ops.deformable_attention_op import deformable_attention_backward
from tests.parity import require


def make_inputs(
    batch=2, queries=5, heads=2, channels=3, shapes=((4, 6), (2, 3)), points=3, dtype=torch.float32
):
    rng = torch.Generator().manual_seed(0)
    cells = sum(h * w for h, w in shapes)
    value = torch.randn(batch, cells, heads, channels, generator=rng, dtype=dtype)
    locations = (
        torch.rand(batch, queries, heads, len(shapes), points, 2, generator=rng, dtype=dtype) * 1.4 - 0.2
    )
    weights = torch.rand(batch, queries, heads, len(shapes), points, generator=rng, dtype=dtype)
    return value, list(shapes), locations, weights / weights.sum((-2, -1), keepdim=True)


def naive(value, shapes, locations, weights):
    """The definition, one sample at a time."""
    batch, _, heads, channels = value.shape
    out = np.zeros((batch, locations.shape[1], heads, channels))
    starts = np.cumsum([0] + [h * w for h, w in shapes])
    for b, q, h, level, p in np.ndindex(weights.shape):
        height, width = shapes[level]
        x, y = locations[b, q, h, level, p] * (width, height) - 0.5
        for row in (int(np.floor(y)), int(np.floor(y)) + 1):
            for col in (int(np.floor(x)), int(np.floor(x)) + 1):
                if 0 <= row < height and 0 <= col < width:
                    share = (1 - abs(y - row)) * (1 - abs(x - col)) * weights[b, q, h, level, p]
                    out[b, q, h] += share * value[b, starts[level] + row * width + col, h]
    return out.reshape(batch, -1, heads * channels)


BOTH = pytest.mark.parametrize("implementation", ["reference", "numba"])


@BOTH
def test_shape_and_definition(implementation):
    value, shapes, locations, weights = make_inputs(dtype=torch.float64)
    out = multi_scale_deformable_attention(value, shapes, locations, weights, implementation=implementation)
    assert out.shape == (2, 5, 6)
    expected = naive(value.numpy(), shapes, locations.numpy(), weights.numpy())
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-12)


@BOTH
def test_matches_mmcv(implementation):
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    value, shapes, locations, weights = make_inputs(queries=40, channels=8)
    expected = multi_scale_deformable_attn_pytorch(value, torch.tensor(shapes), locations, weights)
    found = multi_scale_deformable_attention(value, shapes, locations, weights, implementation=implementation)
    torch.testing.assert_close(found, expected)


def load_parity() -> tuple[list[tuple[int, int]], dict[str, torch.Tensor]]:
    with np.load(require("fixtures/micro_msda.npz"), allow_pickle=False) as arrays:
        data = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    return [(int(h), int(w)) for h, w in data.pop("spatial_shapes")], data


NAMES = ("value", "sampling_locations", "attention_weights")


def check_parity(out, inputs, data):
    out.backward(data["grad_output"])
    torch.testing.assert_close(out, data["output"], atol=1e-5, rtol=0)
    for name, tensor in zip(NAMES, inputs, strict=True):
        expected = data[f"grad_{name}"]
        torch.testing.assert_close(
            tensor.grad, expected, atol=1e-5 * float(expected.abs().max().clamp(min=1)), rtol=0
        )


@BOTH
@pytest.mark.data
def test_matches_upstream_fixture(implementation):
    shapes, data = load_parity()
    value, locations, weights = inputs = [data[name].requires_grad_() for name in NAMES]
    out = multi_scale_deformable_attention(value, shapes, locations, weights, implementation=implementation)
    check_parity(out, inputs, data)


@pytest.mark.data
def test_mmcv_function_matches_upstream_fixture():
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    from perception.ops.mmcv_finder import uses_fallback

    if not uses_fallback():
        pytest.skip("a compiled mmcv is installed")
    shapes, data = load_parity()
    inputs = [data[name].requires_grad_() for name in NAMES]
    starts = torch.tensor([0] + [h * w for h, w in shapes]).cumsum(0)[:-1]
    out = MultiScaleDeformableAttnFunction.apply(inputs[0], torch.tensor(shapes), starts, *inputs[1:], 64)
    check_parity(out, inputs, data)


@BOTH
@pytest.mark.parametrize("has_maps", [False, True])
def test_gradcheck(implementation, has_maps):
    value, shapes, locations, weights = make_inputs(1, 2, 2, 2, ((3, 4), (2, 2)), 2, torch.float64)
    inputs = [x.requires_grad_() for x in (value, locations, weights)]
    map_idx = None
    if has_maps:
        map_idx = torch.tensor([[[0, 2], [1, 1]]])
        inputs[0] = torch.randn(3, *value.shape[1:], dtype=torch.float64, requires_grad=True)

    def attend(value, locations, weights):
        return multi_scale_deformable_attention(
            value, shapes, locations, weights, map_idx, implementation=implementation
        )

    assert gradcheck(attend, inputs)


def test_samples_of_other_batch_rows_do_not_matter():
    value, shapes, locations, weights = make_inputs(batch=3)
    together = multi_scale_deformable_attention(value, shapes, locations, weights)
    for b in range(3):
        alone = multi_scale_deformable_attention(
            value[b : b + 1], shapes, locations[b : b + 1], weights[b : b + 1]
        )
        torch.testing.assert_close(together[b : b + 1], alone)


def test_pixel_centre_returns_the_pixel_and_outside_zero():
    value = torch.arange(6.0).view(1, 6, 1, 1)  # 2 rows, 3 columns
    locations = torch.tensor([[2.5 / 3, 1.5 / 2], [0.5 / 3, 0.5 / 2], [-0.5, 0.5], [0.5, 1.5]]).view(
        1, 4, 1, 1, 1, 2
    )
    out = multi_scale_deformable_attention(value, [(2, 3)], locations, torch.ones(1, 4, 1, 1, 1))
    torch.testing.assert_close(out.flatten(), torch.tensor([5.0, 0.0, 0.0, 0.0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_positions_are_not_rounded(dtype):
    value, shapes, locations, weights = make_inputs(channels=4, shapes=((200, 200),))
    expected = multi_scale_deformable_attention(value.to(dtype).float(), shapes, locations, weights)
    out = multi_scale_deformable_attention(value.to(dtype), shapes, locations, weights)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, atol=2e-2, rtol=1e-2)


def test_autocast_mixes_dtypes():
    value, shapes, locations, weights = make_inputs(channels=4)
    expected = multi_scale_deformable_attention(value.bfloat16(), shapes, locations, weights)
    with torch.autocast("cpu", torch.bfloat16):
        out = multi_scale_deformable_attention(value.bfloat16(), shapes, locations, weights.bfloat16())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected, atol=5e-2, rtol=1e-2)


def test_exports_with_constant_shapes():
    value, shapes, locations, weights = inputs = make_inputs()

    class Attention(torch.nn.Module):
        def forward(self, value, locations, weights):
            return multi_scale_deformable_attention(value, shapes, locations, weights)

    program = torch.export.export(Attention(), (value, locations, weights))
    torch.testing.assert_close(
        program.module()(value, locations, weights), multi_scale_deformable_attention(*inputs)
    )


def test_no_queries():
    value, shapes, locations, weights = make_inputs()
    assert multi_scale_deformable_attention(value, shapes, locations[:, :0], weights[:, :0]).shape == (
        2,
        0,
        6,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v, s, x, w: (v[0], s, x, w), r"value must be \(B, S, H, D\)"),
        (lambda v, s, x, w: (v, s[:1], x, w), "add up to 24 cells, but value has 30"),
        (lambda v, s, x, w: (v, s, x[..., :1, :, :], w), "sampling_locations must be"),
        (lambda v, s, x, w: (v, s, x[:1], w), "sampling_locations must be"),
        (lambda v, s, x, w: (v, s, x, w[..., :1]), "attention_weights must be"),
    ],
)
def test_contradicting_shapes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        multi_scale_deformable_attention(*change(*make_inputs()))


@pytest.mark.parametrize(
    ("rows", "map_idx", "message"),
    [
        (6, torch.zeros(2, 5, 2), r"M a divisor of P=3, found \(2, 5, 2\)"),
        (6, torch.zeros(2, 4, 1), r"must be \(B=2, Q=5, M\)"),
        (6, torch.zeros(3, 5, 1), r"sampling_locations must be \(B=3"),
        (5, torch.zeros(2, 5, 1), "as many maps for each batch row, found 5 for 2 rows"),
        (6, torch.full((2, 5, 1), 3), r"map_idx must be in 0\.\.2, found 3\.\.3"),
        (6, torch.full((2, 5, 1), -1), r"map_idx must be in 0\.\.2, found -1\.\.-1"),
    ],
)
@pytest.mark.parametrize("implementation", ["numba", "reference"])
def test_maps_that_do_not_fit_are_named(rows, map_idx, message, implementation):
    _, shapes, locations, weights = make_inputs()
    value = make_inputs(batch=rows)[0]
    with pytest.raises(ValueError, match=message):
        multi_scale_deformable_attention(
            value, shapes, locations, weights, map_idx.long(), implementation=implementation
        )


def test_the_number_of_threads_does_not_matter():
    value, shapes, locations, weights = make_inputs(batch=2, heads=3)
    tensors = [x.requires_grad_() for x in (value, locations, weights)]
    results, before = [], torch.get_num_threads()
    try:
        for num_threads in (1, 2, 4):
            torch.set_num_threads(num_threads)
            out = multi_scale_deformable_attention(value, shapes, locations, weights)
            results.append([out.detach(), *torch.autograd.grad(out.square().sum(), tensors)])
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(result, results[0], strict=True))


def test_compiles_without_graph_breaks():
    inputs = make_inputs()
    compiled = torch.compile(multi_scale_deformable_attention, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*inputs), multi_scale_deformable_attention(*inputs))


def empty_inputs(device, dtype=torch.float32):
    """Inside FakeTensorMode these have no data, and need no GPU to be on one."""
    locations, weights = (torch.empty(1, 5, 2, 1, 3, *end, device=device) for end in ((2,), ()))
    return torch.empty(1, 6, 2, 4, device=device, dtype=dtype), locations, weights


def chosen(device="cuda", dtype=torch.float32, implementation="auto"):
    with FakeTensorMode():
        return module._choose(implementation, empty_inputs(device, dtype))


@pytest.fixture
def has_triton(monkeypatch):
    monkeypatch.setattr(module, "_HAS_TRITON", True)


@pytest.mark.usefixtures("has_triton")
def test_which_kernel_is_for_which_tensors(monkeypatch):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert chosen(dtype=dtype) == "triton"
    assert chosen(dtype=torch.float64) == "reference"
    assert chosen("cpu") == chosen("cpu", torch.float64) == "numba"
    assert chosen(implementation="reference") == chosen("cpu", implementation="reference") == "reference"
    assert chosen("cpu", implementation="triton") == "triton"  # for the interpreter
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert chosen() == chosen("cpu") == "reference"


@pytest.mark.usefixtures("has_triton")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_has_shapes_without_data(dtype):
    with FakeTensorMode():
        value, locations, weights = empty_inputs("cuda", dtype)
        out = multi_scale_deformable_attention(value, [(2, 3)], locations, weights)
    assert (out.shape, out.dtype, out.device.type) == ((1, 5, 8), dtype, "cuda")


def test_without_triton_the_reference_runs(monkeypatch):
    monkeypatch.setattr(module, "_HAS_TRITON", False)
    assert chosen() == "reference"
    with pytest.raises(ModuleNotFoundError, match="the extra `kernels`"):
        multi_scale_deformable_attention(*make_inputs(), implementation="triton")


@pytest.mark.usefixtures("has_triton")
def test_what_the_kernel_cannot_take_is_named():
    with pytest.raises(ValueError, match="takes float32, float16 and bfloat16, found .*float64"):
        multi_scale_deformable_attention(*make_inputs(dtype=torch.float64), implementation="triton")
    with pytest.raises(ValueError, match="one of .*'numba'.*, found 'cuda'"):
        multi_scale_deformable_attention(*make_inputs(), implementation="cuda")
    with FakeTensorMode(), pytest.raises(ValueError, match="needs CPU tensors, found .*cuda"):
        module._choose("numba", empty_inputs("cuda"))


def test_the_environment_chooses_at_import(monkeypatch):
    monkeypatch.setenv(module.ENVIRONMENT_VARIABLE, "refrence")
    attend = runpy.run_path(module.__file__)["multi_scale_deformable_attention"]
    with pytest.raises(ValueError, match=f"found 'refrence'.*{module.ENVIRONMENT_VARIABLE}"):
        attend(*make_inputs())
    attend(*make_inputs(), implementation="reference")


@pytest.mark.parametrize(("needs_value", "needs_sampling"), [(True, True), (True, False), (False, True)])
def test_gradients_have_shapes_without_data(needs_value, needs_sampling):
    with FakeTensorMode():
        value, locations, weights = empty_inputs("cuda", torch.float16)
        grads = deformable_attention_backward(
            torch.empty(1, 5, 8, device="cuda", dtype=torch.float16),
            value, [2, 3], locations, weights, None, "triton", needs_value, needs_sampling, False,
        )  # fmt: skip
    wanted = (needs_value, needs_sampling, needs_sampling)
    for grad, x, want in zip(grads, (value, locations, weights), wanted, strict=True):
        assert (grad.dtype, grad.device, tuple(grad.shape)) == (
            x.dtype,
            x.device,
            tuple(x.shape) if want else (0,),
        )

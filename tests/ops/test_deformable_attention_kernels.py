"""The kernels against the reference in float64: numba's, and Triton's, on the GPU where there is one, else in Triton's
interpreter.

The interpreter takes about 50 microseconds for every operation of every program, whatever the tile holds: queries cost
nothing, but batch rows, heads, levels and points do, and pixels in the deterministic mode.
"""

import os
import subprocess
import sys
import textwrap
from itertools import chain
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from perception.ops import multi_scale_deformable_attention
from perception.ops.deformable_attention_op import deformable_attention, deformable_attention_backward
from tests.ops.test_deformable_attention import NAMES, check_parity, load_parity

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}  # of the largest entry
SHAPES = ((3, 4), (1, 2))


@pytest.fixture(scope="module", params=["numba", "triton"])
def kernel(request):
    return request.param


@pytest.fixture(scope="module")
def device(kernel):
    return "cpu" if kernel == "numba" else triton_device()


@pytest.fixture
def triton_only(kernel):
    if kernel != "triton":
        pytest.skip("of Triton's kernels alone")


def triton_device():
    pytest.importorskip("triton", reason="Triton is not installed; the extra `kernels` brings it")
    if torch.cuda.is_available():
        return "cuda"
    assert os.environ.get("TRITON_INTERPRET") == "1", "tests/conftest.py sets it"
    return "cpu"


def make_inputs(
    device, batch=1, queries=9, heads=2, channels=3, shapes=SHAPES, points=2, dtype=torch.float32, seed=0
):
    """Locations up to two pixels outside; none so near to a pixel's centre that rounding decides on which side."""
    rng = torch.Generator().manual_seed(seed)
    sizes = torch.tensor([(w, h) for h, w in shapes])[:, None]
    places = (batch, queries, heads, len(shapes), points)
    pixel = ((sizes + 4) * torch.rand(*places, 2, generator=rng, dtype=torch.float64)).floor() - 2
    fraction = 0.01 + 0.98 * torch.rand(*places, 2, generator=rng, dtype=torch.float64)
    value = torch.randn(batch, sum(h * w for h, w in shapes), heads, channels, generator=rng)
    weights = torch.rand(places, generator=rng)
    locations = ((pixel + fraction + 0.5) / sizes).float()
    return value.to(device, dtype), list(shapes), locations.to(device), weights.to(device, dtype)


def run(inputs, grad, implementation, needs=(True, True, True), deterministic=False, map_idx=None):
    """Output and the gradients that are wanted (None for the others)."""
    value, shapes, locations, weights = inputs
    tensors = [
        x.detach().requires_grad_(need) for x, need in zip((value, locations, weights), needs, strict=True)
    ]
    out = multi_scale_deformable_attention(
        tensors[0], shapes, tensors[1], tensors[2], map_idx, implementation=implementation
    )
    torch.use_deterministic_algorithms(deterministic)
    try:
        out.backward(grad)
    finally:
        torch.use_deterministic_algorithms(False)
    return [out.detach(), *(x.grad for x in tensors)]


def expect(inputs, grad):
    value, shapes, locations, weights = inputs
    return run((value.double(), shapes, locations.double(), weights.double()), grad.double(), "reference")


def make_maps(device, batch=2, queries=9, num_maps=3, num_slots=2):
    rng = torch.Generator().manual_seed(2)
    return torch.randint(num_maps, (batch, queries, num_slots), generator=rng).to(device)


def expect_with_maps(inputs, grad, map_idx):
    """The definition: for each map an attention with the weights of the points that read it."""
    value, shapes, locations, weights = (x.double() if torch.is_tensor(x) else x for x in inputs)
    tensors = [x.detach().requires_grad_() for x in (value, locations, weights)]
    batch, per_slot = len(locations), weights.shape[-1] // map_idx.shape[2]
    read = map_idx.repeat_interleave(per_slot, dim=2)[:, :, None, None]  # (B, Q, 1, 1, P)
    of_batch = tensors[0].unflatten(0, (batch, -1))
    out = sum(
        multi_scale_deformable_attention(
            of_batch[:, number], shapes, tensors[1], tensors[2] * (read == number), implementation="reference"
        )
        for number in range(of_batch.shape[1])
    )
    out.backward(grad.double())
    return [out.detach(), *(x.grad for x in tensors)]


def make_grad(inputs, seed=1):
    value, _, locations, _ = inputs
    shape = (len(locations), locations.shape[1], value.shape[2] * value.shape[3])
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(value.device, value.dtype)


def check(found, expected, tolerance):
    for x, y in zip(found, expected, strict=True):
        scale = float(y.abs().max().clamp(min=0.1)) if y.numel() else 1.0
        torch.testing.assert_close(x.double(), y, atol=tolerance * scale, rtol=0)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_matches_the_reference(device, kernel, dtype, deterministic):
    inputs = make_inputs(device, dtype=dtype)
    grad = make_grad(inputs)
    found = run(inputs, grad, kernel, deterministic=deterministic)
    assert [x.dtype for x in found] == [dtype, dtype, torch.float32, dtype]
    check(found, expect(inputs, grad), TOLERANCE[dtype])


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("num_slots", [1, 2])
def test_maps(device, kernel, num_slots, deterministic):
    _, shapes, locations, weights = make_inputs(device, batch=2)
    inputs = (make_inputs(device, batch=6)[0], shapes, locations, weights)
    grad, map_idx = make_grad(inputs), make_maps(device, num_slots=num_slots)
    found = run(inputs, grad, kernel, deterministic=deterministic, map_idx=map_idx)
    check(found, expect_with_maps(inputs, grad, map_idx), 1e-5)


def test_maps_in_the_reference():
    _, shapes, locations, weights = make_inputs("cpu", batch=2)
    inputs = (make_inputs("cpu", batch=6)[0].double(), shapes, locations.double(), weights.double())
    grad, map_idx = make_grad(inputs), make_maps("cpu")
    found = run(inputs, grad, "reference", map_idx=map_idx)
    check(found, expect_with_maps(inputs, grad, map_idx), 1e-12)


def test_mixed_dtypes(device, kernel):
    value, shapes, locations, weights = make_inputs(device)
    inputs = (value.bfloat16(), shapes, locations, weights.half())
    grad = make_grad(inputs)
    found = run(inputs, grad, kernel)
    assert [x.dtype for x in found] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float16]
    check(found, expect(inputs, grad), 1e-2)


@pytest.mark.slow
@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    sizes=st.fixed_dictionaries(
        {name: st.integers(1, 2) for name in ("batch", "heads", "points")}
        | {"queries": st.integers(0, 70), "channels": st.integers(1, 40)}
    ),
    shapes=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=2),
    deterministic=st.booleans(),
)
def test_any_sizes(device, kernel, sizes, shapes, deterministic):
    inputs = make_inputs(device, **sizes, shapes=shapes)
    grad = make_grad(inputs)
    check(run(inputs, grad, kernel, deterministic=deterministic), expect(inputs, grad), 1e-5)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.usefixtures("triton_only")
def test_more_queries_and_channels_than_a_tile(device, kernel, deterministic, monkeypatch):
    from perception.ops import deformable_attention_triton

    monkeypatch.setattr(deformable_attention_triton, "_TILE", 16)  # 2 queries by 8 channels
    inputs = make_inputs(device, queries=5, heads=1, channels=5, shapes=((2, 2),), points=2)
    grad = make_grad(inputs)
    check(run(inputs, grad, kernel, deterministic=deterministic), expect(inputs, grad), 1e-5)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.usefixtures("triton_only")
def test_indices_of_64_bits(device, kernel, deterministic, monkeypatch):
    from perception.ops import deformable_attention_triton

    monkeypatch.setattr(deformable_attention_triton, "_INT32_LIMIT", 0)
    inputs = make_inputs(device, heads=1, points=1)
    grad = make_grad(inputs)
    check(run(inputs, grad, kernel, deterministic=deterministic), expect(inputs, grad), 1e-5)


@pytest.mark.parametrize("deterministic", [False, True])
def test_borders_and_pixel_centres(device, kernel, deterministic):
    """Sides are powers of two, so both compute these positions without rounding."""
    steps = torch.tensor([-1 / 8, 0, 1 / 8, 3 / 16, 1 / 2, 7 / 8, 1, 9 / 8])
    places = torch.cartesian_prod(steps, steps).view(1, 64, 1, 1, 1, 2)
    value, _, _, weights = make_inputs(device, 1, 64, 1, 2, ((4, 8),), 1)
    inputs = (value, [(4, 8)], places.to(device), weights)
    grad = make_grad(inputs)
    check(run(inputs, grad, kernel, deterministic=deterministic), expect(inputs, grad), 1e-5)


@pytest.mark.parametrize("deterministic", [False, True])
def test_places_that_are_no_numbers_count_as_outside(device, kernel, deterministic):
    value, shapes, locations, weights = make_inputs(device, 1, 4, 1, 2, ((2, 3),), 1)
    locations[0, :, 0, 0, 0, 0] = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30])
    grad = torch.ones(1, 4, 2, device=device)
    for x in run((value, shapes, locations, weights), grad, kernel, deterministic=deterministic):
        assert not x.any()


@pytest.mark.slow
@pytest.mark.data
def test_matches_upstream_fixture(device, kernel):
    """Except on which side of a pixel's centre a location lies that is the centre but for the last bit."""
    shapes, data = load_parity()
    sizes = torch.tensor([(w, h) for h, w in shapes], dtype=torch.float64)[:, None]
    places = data["sampling_locations"] * sizes - 0.5
    is_centre = ((places - places.round()).abs() < 1e-6).to(device)
    data = {name: x.to(device) for name, x in data.items()}
    inputs = [data[name].requires_grad_() for name in NAMES]
    out = multi_scale_deformable_attention(inputs[0], shapes, inputs[1], inputs[2], implementation=kernel)
    inputs[1].register_hook(lambda grad: torch.where(is_centre, data["grad_sampling_locations"], grad))
    check_parity(out, inputs, data)


@pytest.mark.parametrize(
    "needs", [(True, False, False), (False, True, False), (False, False, True)], ids=NAMES
)
def test_only_the_gradients_that_are_wanted(device, kernel, needs):
    inputs = make_inputs(device, points=1)
    grad = make_grad(inputs)
    found = run(inputs, grad, kernel, needs)
    assert [x is not None for x in found[1:]] == list(needs)
    expected = expect(inputs, grad)
    check([x for x in found if x is not None], [expected[0], expected[1 + needs.index(True)]], 1e-5)


def test_strides_do_not_matter(device, kernel):
    value, shapes, locations, weights = inputs = make_inputs(device, batch=2, points=1)
    grad = make_grad(inputs)
    expected = run(inputs, grad, kernel)
    value, locations, weights, grad = (x.mT.contiguous().mT for x in (value, locations, weights, grad))
    for x, y in zip(run((value, shapes, locations, weights), grad, kernel), expected, strict=True):
        torch.testing.assert_close(x, y)


def test_activation_checkpointing(device, kernel):
    value, shapes, locations, weights = inputs = make_inputs(device, points=1)
    grad = make_grad(inputs)
    expected = run(inputs, grad, kernel)[1:]
    tensors = [x.requires_grad_() for x in (value, locations, weights)]

    def attend(value, locations, weights):
        return multi_scale_deformable_attention(value, shapes, locations, weights, implementation=kernel)

    checkpoint(attend, *tensors, use_reentrant=False).backward(grad)
    for x, y in zip(tensors, expected, strict=True):
        torch.testing.assert_close(x.grad, y)


def flat(inputs):
    value, shapes, locations, weights = inputs
    return value, list(chain.from_iterable(shapes)), locations, weights


def test_operators_are_well_formed(device, kernel):
    """Torch's own checks: schema, shapes without data, registered gradient, tracing with symbolic sizes."""
    value, sides, locations, weights = flat(make_inputs(device, 1, 1, 1, 2, ((2, 3),), 1))
    tensors = [x.requires_grad_() for x in (value, locations, weights)]
    torch.library.opcheck(deformable_attention, (tensors[0], sides, tensors[1], tensors[2], None, kernel))
    value, locations, weights = (x.detach() for x in tensors)
    grad = torch.ones(1, 1, 2, device=device)
    for flags in ((True, True, False), (False, True, True), (True, False, True)):
        torch.library.opcheck(
            deformable_attention_backward,
            (grad, value, sides, locations, weights, None, kernel, *flags),
            test_utils=("test_schema", "test_faketensor"),
        )


def test_gradients_in_a_batch(device, kernel):
    """`is_grads_batched`, by which TorchJD collects the gradients of several tasks."""
    value, shapes, locations, weights = inputs = make_inputs(device, points=1)
    grads = torch.stack([make_grad(inputs, seed) for seed in (1, 2)])
    tensors = [x.requires_grad_() for x in (value, locations, weights)]
    out = multi_scale_deformable_attention(tensors[0], shapes, tensors[1], tensors[2], implementation=kernel)
    found = torch.autograd.grad(out, tensors, grads, is_grads_batched=True)
    for row, grad in enumerate(grads):
        for x, y in zip(found, run(inputs, grad, kernel)[1:], strict=True):
            torch.testing.assert_close(x[row], y)


def test_second_derivatives_are_refused(device, kernel):
    value, shapes, locations, weights = make_inputs(device, heads=1, shapes=((1, 2),), points=1)
    value.requires_grad_()
    out = multi_scale_deformable_attention(
        value, shapes, locations, weights.requires_grad_(), implementation=kernel
    )
    (grad,) = torch.autograd.grad(out.square().sum(), value, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        grad.sum().backward()


def test_vmap(device, kernel):
    _, sides, locations, weights = flat(make_inputs(device, batch=2, points=2))
    value, map_idx = make_inputs(device, batch=6)[0], make_maps(device)
    found = torch.vmap(lambda v, x, m: deformable_attention(v, sides, x, weights[:1], m, kernel))(
        value.unflatten(0, (2, 3)), locations[:, None], map_idx[:, None]
    )
    expected = deformable_attention(value, sides, locations, weights[:1].expand_as(weights), map_idx, kernel)
    torch.testing.assert_close(found[:, 0], expected)


def test_gradients_in_a_batch_with_maps(device, kernel):
    _, shapes, locations, weights = make_inputs(device, batch=2)
    inputs = (make_inputs(device, batch=6)[0], shapes, locations, weights)
    grads, map_idx = torch.stack([make_grad(inputs, seed) for seed in (1, 2)]), make_maps(device)
    tensors = [x.requires_grad_() for x in (inputs[0], locations, weights)]
    out = multi_scale_deformable_attention(
        tensors[0], shapes, tensors[1], tensors[2], map_idx, implementation=kernel
    )
    found = torch.autograd.grad(out, tensors, grads, is_grads_batched=True)
    for row, grad in enumerate(grads):
        for x, y in zip(found, run(inputs, grad, kernel, map_idx=map_idx)[1:], strict=True):
            torch.testing.assert_close(x[row], y)


@pytest.mark.slow
def test_compiles_without_graph_breaks(device, kernel):
    value, shapes, locations, weights = inputs = make_inputs(device, points=1)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def attend(value, locations, weights):
        return multi_scale_deformable_attention(value, shapes, locations, weights, implementation=kernel) + 1

    tensors = [x.requires_grad_() for x in (value, locations, weights)]
    grad = make_grad(inputs)
    out = attend(*tensors)
    out.backward(grad)
    expected = run(inputs, grad, kernel)
    for x, y in zip((out - 1, *(x.grad for x in tensors)), expected, strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.slow
def test_becomes_machine_code(tmp_path):
    """The interpreter accepts more than the compiler. No GPU is needed to compile for one."""
    pytest.importorskip("triton", reason="Triton is not installed; the extra `kernels` brings it")
    script = Path(__file__).with_name("compile_kernels.py")
    root = Path(__file__).parents[2]
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": str(root),
    }
    result = subprocess.run(
        [sys.executable, "-W", "error", script], env=environment, capture_output=True, text=True, timeout=900
    )
    assert result.returncode == 0, textwrap.indent(result.stderr, "  ")

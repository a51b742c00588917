import copy
import shutil
from itertools import chain

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from perception.models.execution import checkpoint_parts, compile_parts
from tests.models.small import collate, make_item, small_model

PARTS = ("img_backbone.layer2", "img_backbone.layer3", "bev_encoder.layers", "box_head.decoder")


def gradients(model, seed=0):
    """Gradient of every task, as a balancer takes them, and the running statistics after."""
    torch.manual_seed(seed)
    batch = model.data_preprocessor(collate([make_item(0), make_item(1)]), True)
    losses, _ = model.train().parse_losses(model(**batch, mode="loss"))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    grads = [
        torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        for loss in losses.values()
    ]
    return list(chain.from_iterable(grads)), dict(model.named_buffers())


def test_checkpointed_parts_have_the_same_gradients_and_statistics():
    plain = small_model(encoder={"dropout": 0.3})
    saving = small_model(encoder={"dropout": 0.3}, activation_checkpointing=PARTS)
    assert list(saving.state_dict()) == list(plain.state_dict())
    (expected, buffers), (found, others) = gradients(plain), gradients(saving)
    assert len(found) == len(expected)
    for x, y in zip(found, expected, strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            assert_close(x, y)
    for name, buffer in buffers.items():
        assert_close(others[name], buffer, msg=name)
    assert float(buffers["img_backbone.layer2.0.bn1.num_batches_tracked"]) == 1


def saved_bytes(model):
    """What autograd keeps from the forward to the backward pass."""
    sizes = {}

    def pack(tensor):
        sizes[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    batch = model.data_preprocessor(collate([make_item(0)]), True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.train()(**batch, mode="loss")
    return sum(sizes.values())


def test_checkpointed_parts_keep_less():
    assert saved_bytes(small_model(activation_checkpointing=PARTS)) < 0.7 * saved_bytes(small_model())


def test_every_backward_pass_computes_a_part_once_more():
    class Part(nn.Linear):
        num_calls = 0

        def forward(self, x):
            self.num_calls += 1
            return super().forward(x)

    model = nn.Sequential(nn.Linear(2, 2), Part(2, 2))
    checkpoint_parts(model, ["1"])
    out = model(torch.randn(3, 2)).sum()
    assert model[1].num_calls == 1
    for count in (2, 3):
        torch.autograd.grad(out, model[1].weight, retain_graph=True)
        assert model[1].num_calls == count


def test_a_copys_parts_are_its_own():
    """Balancers copy models, and layers of them."""
    model = small_model(activation_checkpointing=PARTS)
    copied = copy.deepcopy(model)
    copied.load_state_dict(small_model(seed=1).state_dict())
    (expected, _), (found, _) = gradients(small_model(seed=1)), gradients(copied)
    for x, y in zip(found, expected, strict=True):
        if x is not None:
            assert_close(x, y)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_evaluation_runs_as_ever():
    model = small_model(activation_checkpointing=PARTS)
    batch = model.data_preprocessor(collate([make_item(0)]), False)
    with torch.no_grad():
        assert_close(
            model.eval()(batch["inputs"], mode="tensor")["bev"],
            small_model().eval()(batch["inputs"], mode="tensor")["bev"],
        )


@pytest.mark.parametrize("key", ["activation_checkpointing", "compiled"])
def test_unknown_parts_are_named(key):
    with pytest.raises(ValueError, match=rf"{key} names 'bev_encodr', .* Did you mean 'bev_encoder'"):
        small_model(**{key: ("bev_encodr",)})


def encoder_inputs(batch=2, *, has_history):
    torch.manual_seed(0)
    items = [make_item(seed)["inputs"] for seed in range(batch)]
    return {
        "mlvl_feats": [torch.randn(batch, 6, 16, 4, 6)],
        "lidar2img": torch.stack([item["lidar2img"][-1] for item in items]),
        "ego_motion": torch.stack([item["ego_motion"][-1] for item in items]),
        "image_shape": (64, 96),
        "prev_bev": torch.randn(batch, 120, 16) if has_history else None,
        "has_prev": torch.tensor([True, False][:batch]) if has_history else None,
    }


@pytest.mark.parametrize("has_history", [False, True])
@pytest.mark.parametrize("max_cameras_per_cell", [None, 2])
def test_the_encoder_is_one_graph(max_cameras_per_cell, has_history):
    encoder = small_model(encoder={"max_cameras_per_cell": max_cameras_per_cell}).bev_encoder
    inputs = encoder_inputs(has_history=has_history)
    explanation = torch._dynamo.explain(encoder)(**inputs)
    assert (explanation.graph_count, explanation.graph_break_count) == (1, 0)
    torch._dynamo.reset()


def test_the_encoder_exports_with_plain_sampling():
    encoder = small_model(encoder={"max_cameras_per_cell": 2}).bev_encoder.eval()
    inputs = encoder_inputs(has_history=True)
    program = torch.export.export(encoder, (), inputs)
    calls = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "aten.grid_sampler.default" in calls
    assert not any("grid_sampler_3d" in call or "perception" in call for call in calls), calls
    assert all(
        node.meta["val"].dim() == 4 for node in program.graph.nodes if "grid_sampler" in str(node.target)
    )
    assert_close(program.module()(**inputs), encoder(**inputs), atol=1e-5, rtol=1e-5)


def check_compiled(backend):
    plain = small_model(encoder={"max_cameras_per_cell": 2}).bev_encoder
    compiled = small_model(encoder={"max_cameras_per_cell": 2}).bev_encoder
    compile_parts(nn.ModuleDict({"bev_encoder": compiled}), ["bev_encoder"], backend=backend)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    inputs = encoder_inputs(has_history=True)
    expected, found = plain(**inputs), compiled(**inputs)
    assert_close(found, expected, atol=1e-5, rtol=1e-5)
    grad = torch.randn_like(expected)
    expected.backward(grad)
    found.backward(grad)
    for x, y in zip(compiled.parameters(), plain.parameters(), strict=True):
        if y.grad is not None:
            assert_close(x.grad, y.grad, atol=1e-4, rtol=1e-4)
    torch._dynamo.reset()


def test_the_compiled_encoder_computes_the_same():
    check_compiled("aot_eager")


# Torch's tracer looks for a `grad` of each input, whose absence it knows, and warns of it.
traced = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


def build(monkeypatch, backend="aot_eager", **changes):
    """A model whose config names compiled parts, without a C++ compiler."""
    compile_module = nn.Module.compile
    monkeypatch.setattr(
        nn.Module, "compile", lambda self, **options: compile_module(self, **{**options, "backend": backend})
    )
    model = small_model(encoder={"max_cameras_per_cell": 2, "num_layers": 1}, **changes)
    monkeypatch.undo()
    return model


@traced
@pytest.mark.parametrize(
    ("compiled", "checkpointed"),
    [
        ("bev_encoder", ()),
        ("bev_encoder", ["bev_encoder.layers"]),
        pytest.param("img_backbone", ["img_backbone.layer2"], marks=pytest.mark.slow),
    ],
)
def test_compiled_parts_give_each_task_its_gradients(compiled, checkpointed, monkeypatch):
    """One backward pass per task through one compiled graph; batch norms inside count a batch once."""
    plain = small_model(encoder={"max_cameras_per_cell": 2, "num_layers": 1})
    model = build(monkeypatch, compiled=[compiled], activation_checkpointing=checkpointed)
    (expected, buffers), (found, others) = gradients(plain), gradients(model)
    for x, y in zip(found, expected, strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            assert_close(x, y, atol=1e-4, rtol=1e-3)
    for name, buffer in buffers.items():
        assert_close(others[name], buffer, msg=name)
    torch._dynamo.reset()


@traced
@pytest.mark.slow
def test_a_run_needs_more_graphs_than_torch_allows(monkeypatch):
    """Training on queues, evaluation frame by frame, batches of any size: torch's own limit would end it."""
    plain = small_model(encoder={"max_cameras_per_cell": 2, "num_layers": 1})
    model = build(monkeypatch, backend="eager", compiled=["bev_encoder"])

    def run(model, mode, num_samples, num_frames):
        is_training = mode == "loss"
        items = [make_item(seed, num_frames=num_frames) for seed in range(num_samples)]
        batch = model.data_preprocessor(collate(items), is_training)
        with torch.set_grad_enabled(is_training):
            return model.train(is_training)(**batch, mode=mode)

    steps = [("loss", 2, 3), ("loss", 1, 3), ("loss", 3, 1)]
    steps += [("predict", size, 1) for size in (1, 1, 2, 2, 3)] + [("loss", 2, 3)]
    for step in steps:
        expected, found = run(plain, *step), run(model, *step)
    for key, value in expected.items():
        assert_close(found[key], value, atol=1e-3, rtol=1e-3, msg=key)
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_the_encoder_as_machine_code_computes_the_same():
    check_compiled("inductor")


def test_too_many_cameras_raise_in_a_graph_too():
    encoder = small_model(encoder={"max_cameras_per_cell": 1}).bev_encoder
    compile_parts(nn.ModuleDict({"bev_encoder": encoder}), ["bev_encoder"], backend="aot_eager")
    with pytest.raises(RuntimeError, match="seen by too many cameras"):
        encoder(**encoder_inputs(has_history=False))
    torch._dynamo.reset()

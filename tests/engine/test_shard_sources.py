"""A backward whose gradients are dealt out while it runs, on one rank; `test_zero_methods` has several."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from perception.engine.shard_sources import GradientStream


@pytest.fixture(autouse=True)
def one_rank(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def make() -> tuple[nn.ModuleDict, Tensor]:
    torch.manual_seed(0)
    parts = {
        "conv": nn.Conv2d(2, 3, 2),
        "trunk": nn.Linear(3, 4),
        "det": nn.Linear(4, 1),
        "seg": nn.Linear(4, 2),
    }
    return nn.ModuleDict(parts), torch.randn(5, 2, 3, 3).to(memory_format=torch.channels_last)


def losses(model: nn.ModuleDict, x: Tensor) -> tuple[Tensor, Tensor]:
    features = model["trunk"](model["conv"](x).mean(dim=(2, 3)).tanh()).tanh()
    return model["det"](features).square().mean(), model["seg"](features).abs().sum()


def stream_of(model: nn.Module, bucket_mb: float) -> GradientStream:
    parameters = list(model.parameters())
    return GradientStream(parameters, [torch.zeros(p.numel()) for p in parameters], bucket_mb=bucket_mb)


@pytest.mark.parametrize("bucket_mb", [1e-6, 1e-4, 1.0])
def test_gradients_of_several_backwards(bucket_mb: float) -> None:
    model, x = make()
    parameters = list(model.parameters())
    stream = stream_of(model, bucket_mb)
    wholes = losses(model, x)
    for loss in wholes:
        expected = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        found: dict[int, Tensor] = {}
        reached = stream.run(loss, found.__setitem__, retain_graph=True)
        assert reached.tolist() == [gradient is not None for gradient in expected]
        assert sorted(found) == list(range(len(parameters)))
        for number, gradient in enumerate(expected):
            wanted = torch.zeros(parameters[number].numel()) if gradient is None else gradient.flatten()
            assert torch.equal(found[number], wanted)
        assert all(p.grad is None for p in parameters)


def test_a_bucket_leaves_before_the_backward_ends() -> None:
    model, x = make()
    stream = stream_of(model, 1e-6)
    before: list[int] = []
    found: list[int] = []
    x.requires_grad_()
    model["conv"].weight.register_hook(lambda _: before.append(len(stream._found)))
    stream.run(losses(model, x)[0], lambda number, _: found.append(number), retain_graph=False)
    assert max(before) <= 2
    assert found == list(reversed(range(8)))


def test_without_a_loss_it_gives_zeros() -> None:
    model, _ = make()
    found: dict[int, Tensor] = {}
    reached = stream_of(model, 1.0).run(None, found.__setitem__, retain_graph=False)
    assert not reached.any()
    assert len(found) == 8
    assert not any(part.any() for part in found.values())


def test_other_backwards_are_left_alone() -> None:
    model, x = make()
    stream_of(model, 1.0)
    sum(losses(model, x)).backward()
    assert all(p.grad is not None for p in model.parameters())

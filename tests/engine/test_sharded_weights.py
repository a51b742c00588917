"""Weights that are gathered by the operations that read them, on one rank; `test_zero_methods` has several."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from perception.engine.sharded_weights import ShardedWeights, own_part


def make() -> tuple[nn.Module, ShardedWeights]:
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {
            "conv": nn.Conv2d(3, 4, 3),
            "norm": nn.BatchNorm2d(4),
            "linear": nn.Linear(4, 5),
            "queries": nn.Embedding(6, 5),
            "attention": nn.MultiheadAttention(5, 1, batch_first=True),
        }
    )
    return model, ShardedWeights(max_live_parameters=120)


def forward(model: nn.Module) -> Tensor:
    """Weights in their layers, beside them, as views, and in a layer that reads another one's."""
    x = torch.linspace(-1, 1, 2 * 3 * 6 * 6).view(2, 3, 6, 6)
    features = model["norm"](model["conv"](x)).relu().flatten(2).mT  # (2, 16, 4)
    keys = model["linear"](features)
    queries = model["queries"].weight[None].expand(2, -1, -1)
    found = model["attention"](queries, keys, keys, need_weights=False)[0]
    return (found @ model["linear"].weight).sin()


def open_shards(model: nn.Module, weights: ShardedWeights) -> list[Tensor]:
    parameters = list(model.parameters())
    shards = [p.detach().reshape(-1).clone() for p in parameters]
    weights.shard(parameters, shards)
    return shards


def repeated(model: nn.Module, use_reentrant: bool) -> Tensor:
    start = torch.ones(1, requires_grad=True)
    return checkpoint(lambda one: forward(model) * one, start, use_reentrant=use_reentrant)


WAYS: dict[str, Callable[[nn.Module], Tensor]] = {
    "plain": forward,
    "repeated": lambda model: repeated(model, False),
    "repeated by the old way": lambda model: repeated(model, True),
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("way", WAYS)
def test_several_backwards_are_those_of_whole_weights(way: str, precision: str) -> None:
    def gradients(model: nn.Module) -> list[Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            output = WAYS[way](model).float()
        (output[0].sum() * 3).backward(retain_graph=True)
        output[1].square().sum().backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    expected = gradients(make()[0])
    model, weights = make()
    with weights:
        open_shards(model, weights)
        assert held(model) == 0
        found = gradients(model)
        assert held(model) <= 120
    assert len(found) == len(expected) > 8
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def held(model: nn.Module) -> int:
    """Elements of weights that take memory."""
    return sum(p.untyped_storage().nbytes() // 4 for p in model.parameters())


def test_memory_is_that_of_the_limit_and_whole_at_the_end() -> None:
    model, weights = make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen = []
    for layer in model.values():
        layer.register_forward_pre_hook(lambda *_: seen.append(held(model)))
    with weights:
        open_shards(model, weights)
        with torch.no_grad():
            forward(model.eval())
        weights.release()
        assert held(model) == 0
    assert max(seen) <= 120 < held(model) == sum(p.numel() for p in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_shapes_and_types_need_no_weights() -> None:
    model, weights = make()
    with weights:
        open_shards(model, weights)
        for p in model.parameters():
            assert torch.zeros_like(p).shape == p.detach().shape == p.shape
            assert p.new_empty(p.shape, dtype=torch.int8).numel() == p.numel()
        model.state_dict()
        assert held(model) == 0


def test_what_is_written_goes_to_the_parts() -> None:
    model, weights = make()
    with weights, torch.no_grad():
        shards = open_shards(model, weights)
        other = {name: torch.full_like(value, 2.0) for name, value in make()[0].state_dict().items()}
        model.load_state_dict(other)
        model["queries"].weight[1] *= 3.0
        weights.release()
        assert all(bool((shard.view(-1) >= 2.0).all()) for shard in shards)
        assert model["queries"].weight[:2, 0].clone().tolist() == [2.0, 6.0]


def test_a_change_of_parts_is_seen_after_a_release() -> None:
    model, weights = make()
    with weights, torch.no_grad():
        shards = open_shards(model, weights)
        number = [id(p) for p in model.parameters()].index(id(model["linear"].bias))
        assert bool(model["linear"].bias.isfinite().all())
        shards[number].fill_(7.0)
        weights.release()
        assert model["linear"].bias.clone().tolist() == [7.0] * 5


def test_an_operation_may_need_more_than_the_limit() -> None:
    weights = ShardedWeights(max_live_parameters=1)
    model = make()[0]
    with weights, torch.no_grad():
        open_shards(model, weights)
        total = torch.cat([p.flatten() for p in model.parameters()]).sum()
    assert torch.equal(total, torch.cat([p.flatten() for p in model.parameters()]).sum())


def test_an_error_inside_leaves_nothing_behind() -> None:
    model, weights = make()

    def fail() -> None:
        with weights:
            open_shards(model, weights)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not weights.is_open
    assert float(torch.ones(2).sum()) == 2.0


def test_memory_shared_with_others_is_given_up() -> None:
    block = torch.arange(6.0)
    layer = nn.Linear(2, 1)
    layer.weight.data, layer.bias.data = block[:2].view(1, 2), block[2:3]
    weights = ShardedWeights()
    with weights:
        weights.shard(list(layer.parameters()), [block[:2].clone(), block[2:3].clone()])
        assert layer(torch.ones(2)).tolist() == [3.0]
    assert block.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_a_limit_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="max_live_parameters is 0; allowed: 1 or more"):
        ShardedWeights(max_live_parameters=0)


def test_parts_of_what_is_not_sharded() -> None:
    model, weights = make()
    with weights:
        shards = open_shards(model, weights)
        first, second = list(model.parameters())[:2]
        assert weights.parts([second, first])[1] is shards[0]
        assert weights.parts([first, torch.ones(1)]) is None
    assert own_part(torch.ones(3, 2), 4).tolist() == [1.0] * 4

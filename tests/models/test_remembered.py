import copy

import pytest
import torch
from torch.testing import assert_close

from perception.models._remembered import Remembered
from perception.models.decoder import DecoderLayer


def make_layer():
    torch.manual_seed(0)
    layer = DecoderLayer(embed_dims=8, num_heads=2, num_points=2, ffn_dims=16, dropout=0.5)
    arguments = {
        "query": torch.randn(1, 5, 8),
        "query_pos": torch.randn(1, 5, 8),
        "bev": torch.randn(2, 6, 8),
        "reference_points": torch.rand(2, 5, 2),
        "bev_shape": (2, 3),
        "num_groups": 1,
    }
    return layer.eval(), arguments


def test_runs_once_while_nothing_changes():
    remembered, calls, weight = Remembered(), [], torch.ones(3)

    def compute():
        calls.append(1)
        return weight * 2

    with torch.no_grad():
        first = remembered([weight], compute)
        assert remembered([weight], compute) is first
        assert len(calls) == 1
        weight.data[1] = 5.0  # unseen by torch's version counter
        assert remembered([weight], compute).tolist() == [2.0, 10.0, 2.0]
        remembered([weight.double()], compute)
        remembered([weight, weight], compute)
    assert len(calls) == 4


@pytest.mark.parametrize("context", [torch.enable_grad, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_runs_each_time_where_the_result_may_differ(context):
    remembered, calls, weight = Remembered(), [], torch.ones(3)
    with torch.no_grad(), context():
        for _ in range(2):
            remembered([weight], lambda: calls.append(1) or weight)
    assert len(calls) == 2


@pytest.mark.parametrize("mask", [None, torch.ones(5, 5).tril().bool()])
def test_a_first_layer_follows_its_weights(mask):
    layer, arguments = make_layer()
    arguments["attention_mask"] = mask
    with torch.no_grad():
        before = layer(**arguments, is_first=True)
        assert_close(before, layer(**arguments), rtol=0, atol=0)
        arguments["bev"] = torch.randn(2, 6, 8)
        assert_close(layer(**arguments, is_first=True), layer(**arguments), rtol=0, atol=0)
        layer.self_attention.in_proj_weight.data.mul_(2)
        after = layer(**arguments, is_first=True)
        assert_close(after, layer(**arguments), rtol=0, atol=0)
    assert not torch.equal(before, after)


def test_a_first_layer_has_gradients_dropout_and_copies():
    layer, arguments = make_layer()
    with torch.inference_mode():
        layer(**arguments, is_first=True)
    twin = copy.deepcopy(layer)
    twin(**arguments, is_first=True).sum().backward()
    assert twin.self_attention.in_proj_weight.grad is not None
    layer.train()
    assert not torch.equal(layer(**arguments, is_first=True), layer(**arguments, is_first=True))
    assert not any("first_look" in key for key in layer.state_dict())

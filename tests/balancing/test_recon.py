"""Recon: scores against cosines computed one by one; the split network against a branch built by hand."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from perception.balancing.recon import LayerConflicts, shared_layers
from perception.balancing.recon_balancers import Recon
from perception.balancing.split_layers import split_layers
from perception.balancing.task_copies import task_copies, use_task
from perception.balancing.task_norms import plain_model

TASKS = ("det", "seg")


def _step(conflicts: LayerConflicts, grads: dict[str, list]) -> None:
    products = conflicts.zero_products()
    for name, parts in grads.items():
        conflicts.add_products(products, name, parts)
    conflicts.update(products)


@pytest.mark.parametrize("threshold", [0.0, -0.3])
def test_scores_count_pairs_and_steps_below_the_threshold(threshold: float) -> None:
    generator = torch.Generator().manual_seed(0)
    conflicts = LayerConflicts(layers=("a.b", "norm", "c"), num_tasks=3, threshold=threshold)
    expected = {"a.b": 0, "norm": 0, "c": 0}
    for _ in range(20):
        grads = {
            f"{layer}.{part}": [torch.randn(shape, generator=generator) for _ in range(3)]
            for layer in ("a.b", "norm")
            for part, shape in (("weight", (2, 2)), ("bias", (2,)))
        }
        grads |= {"c.weight": [torch.randn(3, generator=generator) for _ in range(3)], "d.weight": [None] * 3}
        _step(conflicts, grads)
        for layer in expected:
            rows = [
                torch.cat(
                    [parts[t].flatten() for name, parts in grads.items() if name.startswith(f"{layer}.")]
                )
                for t in range(3)
            ]
            for i in range(3):
                for j in range(i):
                    expected[layer] += float(F.cosine_similarity(rows[i], rows[j], dim=0)) < threshold
    assert dict(zip(conflicts.layers, conflicts.scores.tolist(), strict=True)) == expected
    assert conflicts.top(3) == sorted(expected, key=expected.get, reverse=True)


def test_a_task_that_does_not_reach_a_layer_conflicts_with_none() -> None:
    conflicts = LayerConflicts(layers=("a",), num_tasks=3)
    _step(conflicts, {"a.weight": [torch.ones(2), None, -torch.ones(2)]})
    assert conflicts.scores.tolist() == [1]


def test_ties_keep_the_networks_order_and_pieces_add_up() -> None:
    conflicts = LayerConflicts(layers=("a", "b", "c"), num_tasks=2)
    products = conflicts.zero_products()
    for name in ("b", "c"):
        conflicts.add_products(products, f"{name}.weight", [torch.tensor([3.0]), torch.tensor([1.0])])
        conflicts.add_products(products, f"{name}.weight", [torch.tensor([2.0]), torch.tensor([-2.0])])
    conflicts.update(products)
    assert conflicts.scores.tolist() == [0, 1, 1]
    assert conflicts.top(2) == ["b", "c"]


def test_state_goes_on() -> None:
    first = LayerConflicts(layers=("a",), num_tasks=2)
    _step(first, {"a.weight": [torch.ones(2), -torch.ones(2)]})
    second = LayerConflicts(layers=("a",), num_tasks=2)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    _step(second, {"a.weight": [torch.ones(2), -torch.ones(2)]})
    assert (second.scores.tolist(), second.num_steps, first.scores.tolist()) == ([2], 2, [1])
    with pytest.raises(ValueError, match="of other layers"):
        LayerConflicts(layers=("b",), num_tasks=2).load_state_dict(first.state_dict())


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4), nn.LayerNorm(4))


def test_candidates_are_the_modules_with_parameters() -> None:
    model = nn.Sequential(_network(), nn.Linear(4, 2))
    model[0][0].requires_grad_(False)
    assert shared_layers(model, under=("0",)) == ["0.1", "0.3", "0.4"]
    assert shared_layers(model) == ["0.1", "0.3", "0.4", "1"]


def test_the_split_network_is_the_branched_one() -> None:
    model, x = _network(), torch.randn(6, 3)
    split = split_layers(model, ["1", "3"], TASKS)
    with torch.no_grad():
        split[3]["seg"].weight.mul_(-1)
    branches = {"det": copy.deepcopy(model), "seg": copy.deepcopy(model)}
    with torch.no_grad():
        branches["seg"][3].weight.mul_(-1)
    gradients = []
    for task, branch in branches.items():
        with use_task(split, task):
            out = split(x)
        expected = branch(x)
        assert torch.equal(out, expected)
        assert torch.equal(plain_model(split, task)(x), expected)
        out.square().sum().backward()
        expected.square().sum().backward()
        torch.testing.assert_close(split[3][task].weight.grad, branch[3].weight.grad, rtol=0, atol=0)
        gradients.append(branch[0].weight.grad)
    torch.testing.assert_close(split[0].weight.grad, sum(gradients))


def test_the_top_layers_can_be_split() -> None:
    model = _network()
    conflicts = LayerConflicts(layers=shared_layers(model), num_tasks=2)
    _step(
        conflicts,
        {
            name: [p.detach() + 1, -p.detach() - 1 if "3" in name else p.detach() + 1]
            for name, p in model.named_parameters()
        },
    )
    assert [
        name for name, _ in split_layers(model, conflicts.top(1), TASKS).named_parameters() if "3." in name
    ] == [
        "3.det.weight",
        "3.det.bias",
        "3.seg.weight",
        "3.seg.bias",
    ]


def test_batch_norms_keep_each_groups_own_statistics() -> None:
    """Behind a split layer the groups' features differ: a mixture of their statistics fits none in evaluation."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4), nn.BatchNorm1d(4))
    net.append(nn.BatchNorm1d(4).requires_grad_(False))
    net.append(nn.BatchNorm1d(4, track_running_stats=False))
    net.task_names = TASKS
    model = Recon(layers=["0"]).prepare(net)
    assert set(task_copies(model)) == {"0", "1", "4"}
    with torch.no_grad():
        model[0]["seg"].weight += 2.0
    alone = {task: plain_model(model, task).train() for task in TASKS}
    x = torch.randn(20, 16, 3)
    for batch in x:
        for task in TASKS:
            alone[task](batch)
            with use_task(model, task):
                model.train()(batch)
    for task in TASKS:
        for name in ("1", "4"):
            for part in ("running_mean", "running_var"):
                own = getattr(model.get_submodule(f"{name}.{task}"), part)
                torch.testing.assert_close(own, getattr(alone[task].get_submodule(name), part))
    assert set(task_copies(Recon(layers=["0"], trunk=["0", "1"]).prepare(net))) == {"0", "1"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LayerConflicts(layers=("a",), num_tasks=1), "at least 2 tasks"),
        (lambda: LayerConflicts(layers=(), num_tasks=2), "0 layers"),
        (lambda: LayerConflicts(layers=("a", "a"), num_tasks=2), "different layers"),
        (lambda: LayerConflicts(layers=("a",), num_tasks=2, threshold=0.1), "threshold is 0.1"),
        (lambda: LayerConflicts(layers=("a",), num_tasks=2, threshold=-1.0), "threshold is -1"),
        (lambda: LayerConflicts(layers=("a",), num_tasks=2).top(2), r"1\.\.1"),
        (lambda: LayerConflicts(layers=("a",), num_tasks=2).top(1), "no step yet"),
        (lambda: _step(LayerConflicts(layers=("a",), num_tasks=2), {"a.weight": [None]}), "one per task"),
        (
            lambda: _step(
                LayerConflicts(layers=("a",), num_tasks=2), {"a.w": [torch.tensor([torch.nan])] * 2}
            ),
            "finite",
        ),
        (lambda: shared_layers(nn.ReLU()), "no trainable layer"),
        (lambda: split_layers(_network(), [], TASKS), "needs names"),
        (lambda: split_layers(_network(), ["9"], TASKS), "unknown: \\['9'\\]"),
        (lambda: split_layers(nn.Sequential(_network()), ["0"], TASKS), "hold other layers"),
        (lambda: split_layers(split_layers(_network(), ["0"], TASKS), ["0.det"], TASKS), "already"),
    ],
)
def test_bad_input_is_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()

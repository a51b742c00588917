"""The demo's model: the update of every method against gradients computed one by one."""

from typing import Any

import pytest
import torch
from mmengine.structures import PixelData

from perception.balancing import balancer_names, build_balancer
from perception.config import load_config
from perception.engine import BalancedOptimWrapper
from perception.registry import MODELS
from tests.models.small import collate, make_item

QUICK = ("sum", "pcgrad", "mclgs", "amtl")
ELSEWHERE = ("graddrop", "connection_strength", "cross_stitch", "recon", "recon_scores", "rotograd")
KPI = {"cls": 0.2, "box": 0.5, "velocity": 0.7, "seg": 0.3}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "constant": {"weights": {"cls": 1.0, "box": 2.0, "velocity": 0.5, "seg": 3.0}},
    "dtp": {"form": "loss"},
    "stch": {"mu": 1.0},
    "cagrad": {"c": 0.5},
    "fairgrad": {"alpha": 1.0},
}


def spec_of(name: str) -> dict[str, Any]:
    arguments = {key: value for part in name.split("+") for key, value in ARGUMENTS.get(part, {}).items()}
    if name == "amtl" or "achievement" in name:
        arguments |= {"potentials": KPI, "lower_is_better": ("box", "velocity")}
    return {"name": name, **arguments}


@pytest.fixture(scope="module")
def world() -> dict[str, Any]:
    """The model, a batch, and per task a loss and gradients by name."""
    torch.manual_seed(0)
    model = MODELS.build(load_config("bevformer_nano").model)
    model.init_weights()
    model.train()
    items = [make_item(0, num_frames=1), make_item(1, num_frames=1)]
    for seed, item in enumerate(items):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, 4, (1, 200, 400), generator=generator)
        item["data_samples"].gt_bev_seg = PixelData(sem_seg=labels)
    batch = model.data_preprocessor(collate(items), True)
    losses, _ = model.parse_losses(model(**batch, mode="loss"))
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)
    gradients = {
        task: {
            name: gradient
            for name, gradient in zip(
                names,
                torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True),
                strict=True,
            )
            if gradient is not None
        }
        for task, loss in losses.items()
    }
    values = torch.tensor([float(loss.detach()) for loss in losses.values()], dtype=torch.float64)
    return {"model": model, "batch": batch, "gradients": gradients, "values": values}


def test_decoder_and_trunk_are_shared_by_different_tasks(world: dict[str, Any]) -> None:
    owners = {
        name: {task for task, found in world["gradients"].items() if name in found}
        for name, parameter in world["model"].named_parameters()
        if parameter.requires_grad
    }
    assert owners["img_backbone.conv1.weight"] == {"cls", "box", "velocity", "seg"}
    assert owners["box_head.decoder.0.ffn.linear1.weight"] == {"cls", "box", "velocity"}
    assert owners["seg_head.reduce.weight"] == {"seg"}


@pytest.mark.slow
def test_graddrop_keeps_the_gradients_of_one_sign(world: dict[str, Any]) -> None:
    """Element by element: the sum where the tasks agree, else the sum of one sign's gradients, each sign somewhere."""
    model, gradients = world["model"], world["gradients"]
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    wrapper = BalancedOptimWrapper(torch.optim.SGD(parameters.values(), lr=0.0), balancer="graddrop")
    wrapper.balanced.prepare(model, model.task_names, max_epochs=24, total_steps=100, seed=3)
    wrapper.balanced.begin_epoch(1)
    wrapper.optimizer.zero_grad = lambda *args, **kwargs: None  # type: ignore[method-assign]
    for parameter in parameters.values():
        parameter.grad = None
    with wrapper.optim_context(model):
        losses, _ = model.parse_losses(model(**world["batch"], mode="loss"))
    wrapper.update_params(losses)
    largest = max(float(g.abs().max()) for found in gradients.values() for g in found.values())
    num_positive = num_negative = 0
    for name, parameter in parameters.items():
        stacked = [found[name].double() for found in gradients.values() if name in found]
        if not stacked:
            assert parameter.grad is None or not parameter.grad.any()
            continue
        rows = torch.stack(stacked)
        positive, negative = rows.clamp(min=0).sum(0), rows.clamp(max=0).sum(0)
        assert parameter.grad is not None
        to_positive, to_negative = (parameter.grad - positive).abs(), (parameter.grad - negative).abs()
        error = torch.minimum(to_positive, to_negative)
        error = torch.where(negative == 0, to_positive, torch.where(positive == 0, to_negative, error))
        assert float(error.max()) <= 1e-5 * largest
        has_conflict = (positive > 1e-3 * largest) & (negative < -1e-3 * largest)
        num_positive += int((has_conflict & (to_positive < to_negative)).sum())
        num_negative += int((has_conflict & (to_negative < to_positive)).sum())
    assert min(num_positive, num_negative) > 0


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in balancer_names()
        if name not in ELSEWHERE
    ],
)
def test_update_equals_the_slow_way(world: dict[str, Any], name: str) -> None:
    model, gradients, values = world["model"], world["gradients"], world["values"]
    tasks, present = model.task_names, torch.ones(4, dtype=torch.bool)
    run = {"max_epochs": 24, "total_steps": 100, "seed": 3}
    balancer = build_balancer(spec_of(name))
    balancer.setup(tasks, **run)
    balancer.begin_epoch(1)
    weights = balancer.weigh(values, present)
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    owners = {n: [t for t in tasks if n in gradients[t]] for n in parameters}
    gram = torch.zeros(4, 4, dtype=torch.float64)
    for i, a in enumerate(tasks):
        for j, b in enumerate(tasks):
            gram[i, j] = sum(
                (gradients[a][n].double() * gradients[b][n].double()).sum()
                for n, found in owners.items()
                if len(found) >= 2 and a in found and b in found
            )
    gram = weights[:, None] * gram * weights
    coefficients = balancer.combine(weights * values, present, gram if balancer.needs_gram else None)
    expected = {}
    for n, parameter in parameters.items():
        is_own = len(owners[n]) == 1 and not balancer.scale_heads
        expected[n] = torch.zeros_like(parameter, dtype=torch.float64)
        for task in owners[n]:
            k = tasks.index(task)
            expected[n] += (1.0 if is_own else coefficients[k]) * weights[k] * gradients[task][n].double()

    wrapper = BalancedOptimWrapper(torch.optim.SGD(parameters.values(), lr=0.0), balancer=spec_of(name))
    wrapper.balanced.prepare(model, tasks, **run)
    wrapper.balanced.begin_epoch(1)
    wrapper.optimizer.zero_grad = lambda *args, **kwargs: None  # type: ignore[method-assign]
    for parameter in parameters.values():
        parameter.grad = None
    with wrapper.optim_context(model):
        losses, _ = model.parse_losses(model(**world["batch"], mode="loss"))
    wrapper.update_params(losses)
    total = torch.stack([value.norm() for value in expected.values()]).norm()
    error = torch.stack(
        [
            (value if parameters[n].grad is None else parameters[n].grad.double() - value).norm()
            for n, value in expected.items()
        ]
    ).norm()
    assert error <= 1e-5 * total

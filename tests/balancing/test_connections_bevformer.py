"""Connection strength's parts on BEVFormer: layers found, outputs kept, one update made."""

import pytest
import torch

from perception.balancing.connection_strength import ConnectionStrength
from perception.balancing.connections import LAYERS
from perception.balancing.task_copies import use_task
from perception.balancing.task_norms import plain_model
from perception.models import BEVFormer
from tests.models.small import make_batch, make_item, small_model

TRUNK = ("img_backbone", "img_neck", "bev_encoder")
GROUPS = {"det": ("cls", "box", "velocity"), "seg": ("seg",)}


@pytest.fixture(scope="module")
def watched() -> tuple[ConnectionStrength, BEVFormer, dict]:
    balancer = ConnectionStrength(groups=GROUPS, trunk=TRUNK)
    model = balancer.prepare(small_model()).train()
    batch = make_batch(model, [make_item(0)])
    with balancer.watch(model), use_task(model, "det"):
        model(**batch, mode="loss")
    return balancer, model, batch


def test_every_layer_of_the_trunk_but_the_samplers_is_connected(watched: tuple) -> None:
    balancer, model, _ = watched
    found = {connection.layer: connection for connection in balancer.connections}
    layers = {
        name
        for name, module in model.named_modules()
        if isinstance(module, LAYERS) and name.startswith(TRUNK) and module.weight.requires_grad
    }
    unassigned = {name.rpartition(".")[2] for name in layers - set(found)}
    assert unassigned == {"sampling_offsets", "attention_weights"}
    assert set(found) <= layers
    attention = "bev_encoder.layers.1.spatial_cross_attention"
    assert found[f"{attention}.value_proj"].through == (f"{attention}.output_proj",)
    assert found[f"{attention}.output_proj"].norm == "bev_encoder.layers.1.norms.1"
    assert found["img_neck.lateral_convs.0.conv"].norm == "bev_encoder.layers.0.norms.1"


def test_the_second_phase_gives_finite_gradients_and_uses_the_groups(watched: tuple) -> None:
    balancer, model, batch = watched
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    per_task = []
    for group, tasks in balancer.plan:
        with use_task(model, group):
            losses, _ = model.parse_losses(model(**batch, mode="loss"))
        loss = sum(losses[task] for task in tasks)
        per_task.append(torch.autograd.grad(loss, list(named.values()), allow_unused=True))
    grads = {name: [parts[i] for parts in per_task] for i, name in enumerate(named)}
    assert all(
        grads[f"img_backbone.bn1.{group}.weight"][1 - i] is None for i, group in enumerate(balancer.tasks)
    )
    pieces = [(name, 0, parts) for name, parts in grads.items() if any(part is not None for part in parts)]
    reached = {name: [part is not None for part in parts] for name, parts in grads.items()}
    projected = balancer.project(model, pieces, balancer.reached(reached))
    update = {name: value for (name, _, _), value in zip(pieces, projected, strict=True)}
    assert all(bool(value.isfinite().all()) for value in update.values())
    changed = [
        name
        for name, value in update.items()
        if not torch.equal(value, torch.stack([g for g in grads[name] if g is not None]).sum(dim=0))
    ]
    assert changed
    connected = {f"{c.layer}.{part}" for c in balancer.connections for part in ("weight", "bias")}
    assert set(changed) <= connected


def test_plain_models_have_the_tasks_outputs(watched: tuple) -> None:
    _, model, batch = watched
    model.eval()
    try:
        with torch.no_grad():
            outputs = {}
            for group in GROUPS:
                with use_task(model, group):
                    outputs[group] = model(batch["inputs"])
                plain = plain_model(model, group)(batch["inputs"])
                assert torch.equal(plain["seg_logits"], outputs[group]["seg_logits"])
                assert torch.equal(plain["bev"], outputs[group]["bev"])
        assert not torch.equal(outputs["det"]["bev"], outputs["seg"]["bev"])
    finally:
        model.train()

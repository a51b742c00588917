"""One decoder for boxes and map, trained: by each kind of balancer, and as the demo is."""

from pathlib import Path
from typing import Any

import pytest
import torch

from perception.balancing import build_balancer
from perception.config import load_config
from perception.engine import BalancedOptimWrapper, PerceptionRunner, predict
from perception.engine.task_forwards import prepare_model, train_by_groups
from tests.models.small import collate
from tests.models.unified import TASKS, make_unified_item, unified_model


def wrap(model: Any, balancer: Any, **options: Any) -> BalancedOptimWrapper:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    wrapper = BalancedOptimWrapper(optimizer, balancer=balancer, **options)
    wrapper.balanced.prepare(model, model.task_names, max_epochs=2, total_steps=6, seed=0)
    wrapper.balanced.begin_epoch(1)
    return wrapper


@pytest.mark.parametrize(
    ("balancer", "source"),
    [("wpcgrad-dtp", "parameters"), ("gradnorm", "parameters"), ("pcgrad", "features")],
)
def test_every_part_learns(balancer: str, source: str) -> None:
    model = unified_model().train()
    spec = {"name": balancer, "scales": {"seg": 6.0}} if "pcgrad" in balancer else balancer
    wrapper = wrap(model, spec, gradient_source=source)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    data = collate([make_unified_item(1)])
    totals = [float(model.train_step(data, wrapper)["loss"]) for _ in range(4)]
    assert totals[-1] < totals[0]
    after = dict(model.named_parameters())
    assert [name for name, value in before.items() if torch.equal(after[name], value)] == []


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "connection_strength", "phases": "sequential"},
        {"name": "connection_strength", "phases": "grouped"},
        {"name": "recon", "layers": ["bev_encoder.layers.1.ffn.linear2", "box_head.decoder.0.ffn.linear1"]},
    ],
    ids=["sequential", "grouped", "recon"],
)
def test_one_forward_per_group(spec: dict[str, Any]) -> None:
    """Each group runs all queries through the decoder, which its declared trunk leaves shared."""
    balancer = build_balancer(spec)
    model = prepare_model(balancer, unified_model()).train()
    assert balancer.plan == (("det", TASKS[:3]), ("seg", TASKS[3:]))
    wrapper = wrap(model, balancer)
    before = model.box_head.decoder[0].ffn.linear2.weight.detach().clone()
    terms = train_by_groups(model, collate([make_unified_item(1)]), wrapper, step=1)
    assert {key.partition(".")[0] for key in terms} == set(TASKS)
    assert not torch.equal(model.box_head.decoder[0].ffn.linear2.weight, before)
    assert all(bool(p.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("name", ["cross_stitch", "rotograd"])
def test_methods_that_give_each_head_its_own_features_refuse(name: str) -> None:
    with pytest.raises(ValueError, match="one decoder reads them for all tasks"):
        prepare_model(build_balancer(name), unified_model())


@pytest.mark.slow
def test_nano_unified_trains_and_predicts_on_the_synthetic_world(
    nano_options: list[str], tmp_path: Path
) -> None:
    config = load_config("bevformer_nano_unified", nano_options)
    config.work_dir = str(tmp_path)
    runner = PerceptionRunner.from_cfg(config)
    runner.train()
    samples = list(predict(config, tmp_path))
    assert len(samples) == 4
    for sample in samples:
        assert sample.pred_bev_seg.sem_seg.shape == sample.gt_bev_seg.sem_seg.shape == (1, 160, 320)
        assert len(sample.pred_instances_3d.scores_3d) > 0

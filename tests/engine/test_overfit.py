"""Can the demo's model learn at all? One sample, every task's loss at least 20 times lower."""

import pytest
import torch
from mmengine.dataset import pseudo_collate
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

from perception.config import load_config
from perception.registry import DATASETS, MODELS

STEPS = 400


@pytest.mark.slow
def test_one_sample_is_learnt_by_heart_in_every_task(nano_options):
    config = load_config("bevformer_nano", [*nano_options, "train_dataloader.dataset.pipeline.3.prob=0.0"])
    dataset = DATASETS.build(config.train_dataloader.dataset)
    sample = next(
        item
        for item in (dataset[index] for index in range(len(dataset)))
        if (item["data_samples"].gt_instances_3d.bboxes_3d.tensor[:, 7:].norm(dim=1) > 1).sum() >= 3
    )
    torch.manual_seed(0)
    model = MODELS.build(config.model)
    model.init_weights()
    model.train()
    assert all(module.p == 0 for module in model.modules() if isinstance(module, torch.nn.Dropout))
    batch = model.data_preprocessor(pseudo_collate([sample]), training=True)
    optimizer = AdamW(model.parameters(), lr=2e-3, weight_decay=0.0, fused=True)
    schedule = OneCycleLR(optimizer, 2e-3, total_steps=STEPS, pct_start=0.1)

    history = []
    for _ in range(STEPS):
        losses, _ = model.parse_losses(model(**batch, mode="loss"))
        history.append({task: float(loss.detach()) for task, loss in losses.items()})
        optimizer.zero_grad()
        losses.total().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 35.0)
        optimizer.step()
        schedule.step()

    factors = {task: history[0][task] / history[-1][task] for task in history[0]}
    assert set(factors) == {"cls", "box", "velocity", "seg"}
    assert min(factors.values()) >= 20, factors

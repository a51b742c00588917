"""Activation checkpointing and compiled parts in a run, with methods that copy the model or run it several times."""

from pathlib import Path

import bev_world
import pytest
import torch

from perception.balancing import build_balancer
from perception.checkpoint import load_checkpoint
from perception.engine import PerceptionRunner
from perception.engine.task_forwards import prepare_model
from tests.models.small import small_model

PARTS = ("img_backbone.layer2", "img_neck", "bev_encoder.layers", "box_head.decoder")
LAYERS = ("bev_encoder.layers.0.ffn.linear1", "bev_encoder.layers.0.norms.2")
slow = pytest.mark.slow


@pytest.mark.parametrize(
    "balancer",
    [
        "cross_stitch",
        pytest.param("rotograd", marks=slow),
        pytest.param("connection_strength", marks=slow),
        pytest.param("graddrop", marks=slow),
        pytest.param({"name": "recon", "layers": LAYERS}, marks=slow),
    ],
)
def test_weights_are_those_of_a_run_that_keeps_its_activations(balancer: str | dict, tmp_path: Path) -> None:
    states = []
    for parts in ((), PARTS):
        folder = tmp_path / str(len(parts))
        cfg = bev_world.config(
            folder,
            optim_wrapper__balancer=balancer,
            model__activation_checkpointing=parts,
            train_dataloader__batch_size=2,
            train_cfg=dict(by_epoch=False, max_iters=2, val_interval=0),
        )
        PerceptionRunner.from_cfg(cfg).train()
        states.append(load_checkpoint(folder).model_state)
    kept, repeated = states
    assert kept.keys() == repeated.keys()
    for name, value in kept.items():
        torch.testing.assert_close(repeated[name], value, msg=name)


def test_a_changed_copy_of_a_compiled_model_is_refused() -> None:
    model = small_model(compiled=["bev_encoder"])
    with pytest.raises(ValueError, match=r"nothing is compiled, but \['bev_encoder'\] are to be"):
        prepare_model(build_balancer("rotograd"), model)

"""Names and shapes of the official models' parameters. (Their numbers: tests/engine/parity.)"""

import json

import pytest
import torch

from perception.checkpoint.upstream import official_to_ours
from perception.engine.parity.modules import detector_config
from perception.registry import MODELS
from tests.parity import require

LISTS = ["bevformer_tiny", "bevformer_small", "bevformer_base", "binze_small_seg_det_r101dcn",
         "binze_small_seg_det_r50_nodcn"]  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_parameter_names_and_shapes_map_one_to_one(name):
    info = json.loads(require(f"params/{name}.json").read_text())
    with torch.device("meta"):
        model = MODELS.build(detector_config(info["model_config"], is_binze="binze" in name))
    ours = {key: list(value.shape) for key, value in model.state_dict().items()}
    official = {official_to_ours(key): value["shape"] for key, value in info["tensors"].items()}
    assert ours == official
    assert len(official) == len(info["tensors"])
    assert sum(p.numel() for p in model.parameters()) == info["params_total"]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == info["params_requires_grad"]

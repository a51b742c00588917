"""The model configs build, and are as large as their docstrings say."""

from pathlib import Path

import pytest
import torch

from perception.config import load_config
from perception.registry import MODELS
from tests.models.small import collate, make_item

FOLDER = Path(__file__).parents[2] / "configs" / "_base_" / "models"


def build(name):
    return MODELS.build(load_config(FOLDER / f"{name}.py").model)


@pytest.mark.parametrize("name", ["bevformer_nano", "bevformer_tiny"])
def test_parameters_are_as_many_as_the_docstring_says(name):
    model = build(name)
    total = sum(parameter.numel() for parameter in model.parameters())
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    text = (FOLDER / f"{name}.py").read_text()
    assert f"{total:,} parameters, {trainable:,} of them trained" in text


def test_nano_trains_and_predicts_on_random_images():
    torch.manual_seed(0)
    model = build("bevformer_nano")
    item = make_item(1, num_frames=2, with_map=False)
    item["inputs"]["img"] = torch.randint(0, 255, (2, 6, 3, 198, 352), dtype=torch.uint8)
    item["inputs"]["lidar2img"][..., :2, :] *= 352 / 96
    batch = model.data_preprocessor(collate([item]), True)
    tasks, _ = model.parse_losses(model(**batch, mode="loss"))
    assert tasks.present == (True, True, True, False)
    sum(tasks.values()).backward()
    with torch.no_grad():
        result = model.eval()(**batch, mode="predict")[0]
    assert result.pred_bev_seg.sem_seg.shape == (1, 200, 400)
    assert len(result.pred_instances_3d.scores_3d) > 0

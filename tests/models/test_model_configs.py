"""The model configs build, and are as large as their docstrings say."""

from pathlib import Path

import pytest
import torch

from perception.config import list_configs, load_config
from perception.registry import MODELS
from tests.models.small import collate, make_item

FOLDER = Path(__file__).parents[2] / "configs" / "_base_" / "models"


def build(name):
    return MODELS.build(load_config(FOLDER / f"{name}.py").model)


def sizes(model):
    """Numbers of parameters, of those that are trained, and of values in saved buffers."""
    parameters = dict(model.named_parameters())
    buffers = [value for name, value in model.state_dict().items() if name not in parameters]
    trained = [parameter for parameter in parameters.values() if parameter.requires_grad]
    return tuple(sum(value.numel() for value in group) for group in (parameters.values(), trained, buffers))


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_the_docstring_says_how_large_the_model_is(name):
    total, trained, buffers = sizes(build(name))
    text = " ".join((FOLDER / f"{name}.py").read_text().split())
    assert f"{total:,} parameters, {trained:,} of them trained, {buffers:,} values in buffers" in text


def test_bevformer_small_is_the_papers():
    assert sizes(build("bevformer_small"))[:2] == (43_866_761, 43_591_231)  # the paper: 43.9 million
    small = load_config("bevformer_small")
    assert small.model.bev_encoder.num_layers == 3
    assert (small.model.box_head.num_layers, small.model.box_head.num_query) == (6, 900)
    assert set(small.optim_wrapper.balancer.scales) == set(MODELS.build(small.model).task_names)
    assert load_config("bevformer_tiny").model.bev_encoder.bev_h == 50  # the base is left as it was


@pytest.mark.parametrize("name", [c.short for c in list_configs() if "_static" in c.short])
def test_static_variants_see_one_frame(name):
    config = load_config(name)
    assert config.model.use_history is False
    assert config.train_dataloader.dataset.queue_length == 1
    config = load_config(name.replace("_static", ""))
    assert "use_history" not in config.model
    assert config.train_dataloader.dataset.queue_length >= 3


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

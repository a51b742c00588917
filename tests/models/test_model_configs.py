"""The model configs build, and are as large as their docstrings say."""

import json
import math
from functools import cache
from pathlib import Path

import pytest
import torch

from perception.config import list_configs, load_config
from perception.registry import MODELS
from tests.models.small import collate, make_item
from tests.parity import require

FOLDER = Path(__file__).parents[2] / "configs" / "_base_" / "models"


def build(name):
    return MODELS.build(load_config(FOLDER / f"{name}.py").model)


def sizes(model):
    """Numbers of parameters, of those that are trained, and of values in saved buffers."""
    parameters = dict(model.named_parameters())
    buffers = [value for name, value in model.state_dict().items() if name not in parameters]
    trained = [parameter for parameter in parameters.values() if parameter.requires_grad]
    return tuple(sum(value.numel() for value in group) for group in (parameters.values(), trained, buffers))


@cache
def sizes_of(name):
    return sizes(build(name))


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_the_docstring_says_how_large_the_model_is(name):
    total, trained, buffers = sizes_of(name)
    text = " ".join((FOLDER / f"{name}.py").read_text().split())
    assert f"{total:,} parameters, {trained:,} of them trained, {buffers:,} values in buffers" in text


@pytest.mark.parametrize(
    ("name", "official"),
    [
        ("bevformer_official_tiny", "bevformer_tiny"),
        ("bevformer_official_small", "bevformer_small"),
        ("bevformer_official_base", "bevformer_base"),
        ("bevformer_small", "binze_small_seg_det_r50_nodcn"),
    ],
)
def test_as_large_as_the_official_code_builds_it(name, official):
    info = json.loads(require(f"params/{official}.json").read_text())
    total, trained, buffers = sizes_of(name)
    assert (total, trained) == (info["params_total"], info["params_requires_grad"])
    shapes = [tensor["shape"] for tensor in info["tensors"].values() if tensor["kind"] != "param"]
    assert buffers == sum(math.prod(shape) for shape in shapes)


@pytest.mark.parametrize("name", ["bevformer_official_small", "bevformer_official_base"])
def test_official_structures_train_at_a_reduced_width(name):
    torch.manual_seed(0)
    model = load_config(name).model
    grid = dict(bev_h=10, bev_w=10, embed_dims=32)
    model.img_backbone.update(depth=50, base_channels=4)
    model.img_neck.update(in_channels=[size // 16 for size in model.img_neck.in_channels], out_channels=32)
    model.bev_encoder.update(num_layers=2, **grid)
    model.box_head.update(num_query=20, num_layers=2, **grid)
    model.upstream_compat.update(rotate_center=(5.0, 5.0))
    detector = MODELS.build(model).train()
    batch = detector.data_preprocessor(collate([make_item(1), make_item(2)]), True)
    assert batch["inputs"]["img"].shape[-2:] == (64, 96)  # 60 rows, padded
    losses, _ = detector.parse_losses(detector(**batch, mode="loss"))
    assert losses.present == (True, True, True)
    sum(losses.values()).backward()
    missing = [n for n, p in detector.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    assert detector.img_backbone.layer4[0].conv2.conv_offset.weight.grad.isfinite().all()
    with torch.no_grad():
        result = detector.eval()(**batch, mode="predict")[0]
    assert len(result.pred_instances_3d.scores_3d) > 0


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_official_models_see_what_their_checkpoints_saw(size):
    for name in (f"bevformer_official_{size}", f"bevformer_official_{size}_static"):
        config = load_config(name)
        assert set(config.model.upstream_compat) == {"rotate_center", "aliased_shift"}
        loaders = (config.train_dataloader, config.val_dataloader, config.test_dataloader)
        assert all(loader.dataset.upstream_can_bus for loader in loaders)


def test_bevformer_small_is_the_papers():
    assert sizes_of("bevformer_small")[:2] == (43_866_761, 43_591_231)  # the paper: 43.9 million
    small = load_config("bevformer_small")
    assert small.model.bev_encoder.num_layers == 3
    assert (small.model.box_head.num_layers, small.model.box_head.num_query) == (6, 900)
    assert load_config("bevformer_tiny").model.bev_encoder.bev_h == 50  # the base is left as it was


@pytest.mark.parametrize(
    ("width", "joint", "ratio"), [(128, "fcos_rt", 1.12), (128, "fcos_rt_p3", 1.10), (256, "fcos_rt", 1.15)]
)
def test_relative_size_of_fcos_rt(width, joint, ratio):
    """The paper's #P: the joint model by the mean of the single ones; 1.15 there."""
    found = []
    for name in (joint, "fcos_rt_det", "fcos_rt_seg"):
        model = load_config(name).model
        if name == "fcos_rt_seg" and joint == "fcos_rt_p3":
            model.update(
                img_neck=load_config(joint).model.img_neck, seg_head=load_config(joint).model.seg_head
            )
        if model.get("seg_head") is not None:
            model.seg_head.update(feat_channels=width)
        found.append(sizes(MODELS.build(model))[0])
    assert round(found[0] / (sum(found[1:]) / 2), 2) == ratio
    if (joint, width) == ("fcos_rt", 128):
        assert found == [33_235_941, 30_953_810, 28_478_675]


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

"""Teachers beside a model in training: what is learned, what is left alone, and teachers that do not fit."""

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from perception.config import ConfigError
from perception.engine.run_folder import to_plain
from perception.models.distillation import soft_box_losses, soft_mask_losses
from tests.models.images import image_batch, image_config, image_item, image_model

HEADS = {"det": "box", "seg": "seg"}


@pytest.fixture
def teachers(tmp_path: Path) -> dict[str, str]:
    """Task → weights beside a config.json."""
    found = {}
    for seed, task in enumerate(HEADS):
        other = {HEADS[name]: None for name in HEADS if name != task}
        folder = tmp_path / task
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(to_plain({"model": image_config(**other)})))
        weights = folder / "model.safetensors"
        save_file(image_model(seed + 5, **other).state_dict(), str(weights))
        found[task] = str(weights)
    return found


def student(teachers: dict[str, str], kind: str, **changes):
    return image_model(distillation={"teachers": teachers, "kind": kind, "weight": 0.5}, **changes)


@pytest.mark.parametrize("kind", ["soft", "features"])
def test_images_without_labels_teach_both_tasks(teachers, kind):
    model = student(teachers, kind)
    batch = image_batch(model, [image_item(1, boxes=None, mask=False), image_item(2, boxes=None, mask=False)])
    losses = model(**batch, mode="loss")
    names = {key.rpartition(".")[2] for key in losses if key.startswith("det.distill.")}
    wanted = {"soft": {"loss_focal", "loss_giou", "loss_centerness"}, "features": {"loss_feature"}}[kind]
    assert names == wanted | {"num_targets"}
    assert not any(key.startswith(("det.loss", "seg.loss")) for key in losses)
    tasks, _ = model.parse_losses(losses)
    assert tasks.present == (True, True)
    tasks.total().backward()
    assert all(
        parameter.grad is not None for parameter in model.img_neck.parameters() if parameter.requires_grad
    )
    with model.only_tasks(("seg",)):
        assert {key.split(".")[0] for key in model(**batch, mode="loss")} == {"seg"}


@pytest.mark.parametrize("kind", ["soft", "features"])
def test_a_copy_of_the_teachers_has_nothing_to_learn(teachers, kind):
    """The student is the teacher of boxes itself, so that the difference is at its least and the gradient 0."""
    model = student({"det": teachers["det"]}, kind, seg=None)
    teacher = model.distillation._teachers["det"]
    model.load_state_dict(teacher.state_dict(), strict=False)
    for adapter in model.distillation.adapters["det"] if kind == "features" else ():
        torch.nn.init.dirac_(adapter.weight)
        torch.nn.init.zeros_(adapter.bias)
    model.eval()  # running statistics, as the teacher's
    losses = model(**image_batch(model, [image_item(3)]), mode="loss")
    parts = [value for key, value in losses.items() if key.startswith("det.distill.loss")]
    torch.stack(parts).sum().backward()
    largest = max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None)
    assert largest < 1e-4
    if kind == "features":
        assert float(parts[0].detach()) < 1e-8


def test_teachers_are_neither_trained_nor_saved(teachers):
    model, plain = student(teachers, "soft"), image_model()
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in plain.parameters())
    teacher = model.distillation._teachers["det"]
    before = copy.deepcopy(teacher.state_dict())
    model.train()
    assert not teacher.training
    losses, _ = model.parse_losses(model(**image_batch(model, [image_item(4), image_item(5)]), mode="loss"))
    losses.total().backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    with_adapters = student(teachers, "features")
    extra = with_adapters.state_dict().keys() - plain.state_dict().keys()
    assert {key.split(".")[2] for key in extra} == {"det", "seg"}


def test_teachers_that_do_not_fit(teachers):
    for found, message in (
        ({"depth": teachers["det"]}, r"names \['depth'\]"),
        ({}, "tasks are"),
        ({"seg": teachers["det"]}, "has no such head"),
    ):
        with pytest.raises(ConfigError, match=message):
            student(found, "soft")
    with pytest.raises(ConfigError, match="'soft' or 'features'"):
        student(teachers, "hard")


def test_soft_masks_are_cross_entropy_inside_the_images():
    torch.manual_seed(0)
    logits, teacher = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    losses = soft_mask_losses(logits, teacher, [(13, 20), (16, 9)], 4)
    inside = [(0, slice(0, 4), slice(0, 5)), (1, slice(0, 4), slice(0, 3))]
    expected = [
        F.cross_entropy(
            logits[b, :, r, c].flatten(1).T, teacher[b, :, r, c].flatten(1).T.softmax(1), reduction="sum"
        )
        for b, r, c in inside
    ]
    assert int(losses["num_targets"]) == 20 + 12
    assert torch.isclose(losses["loss_ce"], sum(expected) / 32)


def test_soft_boxes_without_a_sure_location():
    model = image_model(seg=None)
    with torch.no_grad():
        outputs = model._forward_raw(image_batch(model, [image_item(6)])["inputs"])["boxes"]
    silent = copy.copy(outputs)
    object.__setattr__(silent, "cls_scores", torch.full_like(outputs.cls_scores, -30.0))
    losses = soft_box_losses(outputs, silent)
    assert losses.keys() == {"loss_focal", "num_targets"}
    assert float(losses["num_targets"]) == 0
    assert float(losses["loss_focal"]) > 0

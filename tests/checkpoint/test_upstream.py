"""Names and tensors of official checkpoints: each once, and back to the same bits."""

import json

import pytest
import torch

from perception.checkpoint import CheckpointError
from perception.checkpoint.upstream import (
    convert_code,
    convert_state,
    official_to_ours,
    ours_to_official,
    restore_state,
)
from tests.parity import require

LISTS = ["bevformer_tiny", "bevformer_small", "bevformer_base", "binze_small_seg_det_r101dcn",
         "binze_small_seg_det_r50_nodcn"]  # fmt: skip
HEAD = "pts_bbox_head."


def official_state(name):
    """A state dict with the official names, shapes and types; every tensor that conversion may change is random."""
    torch.manual_seed(0)
    tensors = json.loads(require(f"params/{name}.json").read_text())["tensors"]
    state = {}
    for key, entry in tensors.items():
        if entry["dtype"] == "int64":
            state[key] = torch.tensor(7)
        else:
            state[key] = torch.randn(entry["shape"]) if "branches" in key or "code" in key else torch.randn(1)
    return state


@pytest.mark.parametrize("name", LISTS)
def test_every_official_name_maps_once_and_back(name):
    state = official_state(name)
    ours = {key: official_to_ours(key) for key in state}
    assert None not in ours.values()
    assert len(set(ours.values())) == len(state)
    assert all(ours_to_official(value) == key for key, value in ours.items())


@pytest.mark.parametrize("name", LISTS)
def test_a_round_trip_gives_the_same_bits_and_order(name):
    state = official_state(name)
    converted = convert_state(state)
    back = restore_state(converted)
    assert list(back) == list(state)
    for key, value in state.items():
        assert back[key].dtype == value.dtype
        assert torch.equal(back[key].flatten().view(torch.uint8), value.flatten().view(torch.uint8)), key
    changed = {
        key for key, value in state.items() if not torch.equal(converted[official_to_ours(key)], value)
    }
    layers = range(6)
    expected = {f"{HEAD}reg_branches.{i}.4.{what}" for i in layers for what in ("weight", "bias")}
    assert changed == expected | {f"{HEAD}code_weights"}


def test_rows_of_a_regression_branch():
    rows = torch.arange(10.0)[:, None] + torch.tensor([[0.0, 0.5]])
    ours = convert_state({f"{HEAD}reg_branches.3.4.weight": rows})["box_head.reg_branches.3.4.weight"]
    assert ours[:, 0].tolist() == [0, 1, 3, 2, 4, 5, -7, -6, 8, 9]
    other = convert_state({f"{HEAD}reg_branches.3.2.weight": rows})["box_head.reg_branches.3.2.weight"]
    assert torch.equal(other, rows)


def test_the_box_rule_is_the_angle_rule():
    """From the conventions alone: l and w change places, and yaw becomes −yaw − π/2, in both directions."""
    width, length, yaw = torch.tensor(1.9), torch.tensor(4.6), torch.linspace(-3, 3, 7)
    ones = torch.ones(7)
    upstream = torch.stack(
        [ones, 2 * ones, width.log() * ones, length.log() * ones, 3 * ones, 4 * ones, yaw.sin(), yaw.cos(), 5 * ones,
         6 * ones], dim=-1,
    )  # fmt: skip
    new = -yaw - torch.pi / 2
    ours = torch.stack(
        [ones, 2 * ones, length.log() * ones, width.log() * ones, 3 * ones, 4 * ones, new.sin(), new.cos(), 5 * ones,
         6 * ones], dim=-1,
    )  # fmt: skip
    torch.testing.assert_close(convert_code(upstream), ours, atol=1e-6, rtol=0)
    assert torch.equal(convert_code(convert_code(upstream)), upstream)


def test_code_weights_change_order_but_no_sign():
    ours = convert_state({f"{HEAD}code_weights": torch.arange(10.0)})["box_head.code_weights"]
    assert ours.tolist() == [0, 1, 3, 2, 4, 5, 7, 6, 8, 9]


def test_classes_in_another_order():
    state = {
        f"{HEAD}cls_branches.0.6.bias": torch.tensor([0.0, 1, 2]),
        f"{HEAD}cls_branches.0.3.bias": torch.arange(3),
    }
    ours = convert_state(state, class_rows=(2, 0, 1))
    assert ours["box_head.cls_branches.0.6.bias"].tolist() == [2, 0, 1]
    assert ours["box_head.cls_branches.0.3.bias"].tolist() == [0, 1, 2]
    back = restore_state(ours, class_rows=(1, 2, 0))
    assert back[f"{HEAD}cls_branches.0.6.bias"].tolist() == [0, 1, 2]


def test_older_spellings():
    new = "img_backbone.layer3.0.conv2.conv_offset.weight"
    assert official_to_ours("module.img_backbone.layer3.0.conv2_offset.weight") == new
    assert official_to_ours(new) == new
    assert official_to_ours("module.pts_bbox_head.code_weights") == "box_head.code_weights"


@pytest.mark.parametrize(
    "name",
    [
        "fpn3d.weight",
        "pts_bbox_head.bev_embeding.weight",
        "pts_bbox_head.code_weights.weight",
        "pts_bbox_head.transformer.encoder.layers.x.norms.0.bias",
        "pts_bbox_head.transformer.encoder.layers.0.attentions.1.deformable_attention.output_proj.weight",
        "ema_img_backbone_conv1_weight",
        "",
    ],
)
def test_other_names_are_refused_by_name(name):
    assert official_to_ours(name) is None
    with pytest.raises(CheckpointError, match=f"1 name.*{name}"):
        convert_state({"img_neck.x": torch.zeros(1), name: torch.zeros(1)}, path="x.pth")


def test_what_upstream_does_not_have_is_refused_by_name():
    with pytest.raises(CheckpointError, match="center_heatmap.conv.weight"):
        restore_state({"center_heatmap.conv.weight": torch.zeros(1)})


def test_the_same_tensor_twice_is_refused():
    state = {"img_neck.x": torch.zeros(1), "module.img_neck.x": torch.ones(1)}
    with pytest.raises(CheckpointError, match="img_neck.x twice"):
        convert_state(state)

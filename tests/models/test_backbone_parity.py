"""ResNet, deformable convolutions and FPN, as the configs use them, against numbers of the official code."""

import pytest
import torch
from mmdet.models.backbones import ResNet
from mmdet.models.necks import FPN
from torch.testing import assert_close

from tests.models.parity_fixtures import read_arrays

FROZEN = {"norm_cfg": {"type": "BN", "requires_grad": False}, "norm_eval": True}
STYLES = {
    "pytorch": {"style": "pytorch"},
    "caffe": {"style": "caffe"},
    "caffe_dcn": {
        "style": "caffe",
        "dcn": {"type": "DCNv2", "deform_groups": 1},
        "stage_with_dcn": (False, False, True, True),
    },
}


def near(actual, expected):
    assert_close(actual, expected, atol=5e-5, rtol=1e-5)


def states(arrays, prefix):
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


@pytest.mark.parametrize("name", STYLES)
def test_resnet(name):
    arrays = read_arrays("micro_backbone_fpn")
    weights = "pytorch" if name == "caffe" else name
    backbone = ResNet(depth=50, base_channels=8, out_indices=(0, 1, 2, 3), **FROZEN, **STYLES[name])
    backbone.load_state_dict(states(arrays, f"{weights}/state_dict/img_backbone."))
    backbone.eval()  # returns nothing
    features = backbone(arrays["input"])
    for stage, feature in enumerate(features):
        near(feature, arrays[f"{name}/stage{stage}"])
    backbone.train()
    image = arrays["input"].clone().requires_grad_()
    features = backbone(image)  # frozen statistics: training changes nothing
    near(features[-1], arrays[f"{name}/stage3"])
    sum(feature.square().mean() for feature in features).backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters() if p.requires_grad
    )
    assert image.grad.abs().max() > 0


def test_deformable_resnet_in_channels_last_trains_its_offsets():
    arrays = read_arrays("micro_backbone_fpn")
    settings = {**FROZEN, **STYLES["caffe_dcn"], "frozen_stages": 1}
    backbone = ResNet(depth=50, base_channels=8, **settings)
    backbone.load_state_dict(states(arrays, "caffe_dcn/state_dict/img_backbone."))
    backbone.eval()
    with torch.no_grad():
        features = backbone(arrays["input"].contiguous(memory_format=torch.channels_last))
    near(features[-1], arrays["caffe_dcn/stage3"])
    backbone.train()
    backbone(arrays["input"])[-1].square().mean().backward()
    offsets = backbone.layer4[0].conv2.conv_offset
    assert offsets.weight.grad.abs().max() > 0
    assert all(p.grad is None for p in backbone.layer1.parameters())


@pytest.mark.parametrize(("name", "first"), [("fpn1", 3), ("fpn4", 1)])
def test_fpn(name, first):
    arrays = read_arrays("micro_backbone_fpn")
    features = [arrays[f"pytorch/stage{stage}"] for stage in range(first, 4)]
    outs = sum(key.startswith(f"{name}/out") for key in arrays)
    weights = states(arrays, f"{name}/state_dict/img_neck.")
    neck = FPN(
        in_channels=[feature.shape[1] for feature in features],
        out_channels=arrays[f"{name}/out0"].shape[1],
        add_extra_convs="on_output",
        num_outs=outs,
        relu_before_extra_convs=True,
    )
    neck.load_state_dict(weights)
    for level, feature in enumerate(neck(features)):
        near(feature, arrays[f"{name}/out{level}"])

"""Fixtures of mmdet's ResNet and FPN, whose settings are read from the weights."""

from typing import Any

import torch
from mmdet.models.backbones import ResNet
from mmdet.models.necks import FPN
from torch import Tensor

from perception.engine.parity.comparison import Comparison
from perception.engine.parity.fixtures import Fixture, count, official_state

TOLERANCE = 5e-5  # the folder's README
_BACKBONE, _NECK = "img_backbone.", "img_neck."
_REFERENCE = "pytorch"
"""The variant whose weights the others share, and whose stages feed the necks."""
_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def compare_backbone(fixture: Fixture) -> Comparison:
    """Every variant of the backbone (`<style>[_…]/stage<i>`), then every neck (`…/out<i>`) on the official features."""
    compare = Comparison(fixture)
    images = compare.take("input")
    for variant in _variants(fixture, "/stage0"):
        state = _weights(fixture, variant, _BACKBONE) or _weights(fixture, _REFERENCE, _BACKBONE)
        backbone = ResNet(**_settings(state), style=variant.partition("_")[0])
        backbone.load_state_dict(state)
        backbone.eval()
        with torch.no_grad():
            stages = backbone(images)
        for idx, stage in enumerate(stages):
            compare.near(f"{variant} stages", f"{variant}/stage{idx}", stage, TOLERANCE)
    for neck in _variants(fixture, "/out0"):
        _compare_neck(compare, neck)
    return compare


def _compare_neck(compare: Comparison, name: str) -> None:
    arrays = compare.fixture.arrays
    state = _weights(compare.fixture, name, _NECK)
    num_laterals = count(state, "lateral_convs.{}.conv.weight")
    widths = [state[f"lateral_convs.{idx}.conv.weight"].shape[1] for idx in range(num_laterals)]
    num_outs = count(arrays, f"{name}/out{{}}")
    neck = FPN(
        in_channels=widths,
        out_channels=len(state["fpn_convs.0.conv.weight"]),
        num_outs=num_outs,
        add_extra_convs="on_output" if num_outs > num_laterals else False,
        relu_before_extra_convs=True,
    )
    neck.load_state_dict(state)
    stages = [arrays[f"{_REFERENCE}/stage{idx}"] for idx in range(count(arrays, f"{_REFERENCE}/stage{{}}"))]
    features = [stage for stage in stages if stage.shape[1] in widths]
    with torch.no_grad():
        outputs = neck(features)
    for idx, output in enumerate(outputs):
        compare.near(f"{name} outputs", f"{name}/out{idx}", output, TOLERANCE)


def _settings(state: dict[str, Tensor]) -> dict[str, Any]:
    blocks = tuple(count(state, f"layer{stage}.{{}}.conv3.weight") for stage in range(1, 5))
    depths = [depth for depth, layout in _BLOCKS.items() if layout == blocks]
    if not depths:
        raise ValueError(f"no ResNet of bottlenecks has {blocks} blocks; known: {_BLOCKS}.")
    deformable = tuple(f"layer{stage}.0.conv2.conv_offset.weight" in state for stage in range(1, 5))
    settings: dict[str, Any] = {"depth": depths[0], "base_channels": len(state["conv1.weight"])}
    if any(deformable):
        settings |= {"dcn": {"type": "DCNv2", "deform_groups": 1}, "stage_with_dcn": deformable}
    return settings


def _weights(fixture: Fixture, variant: str, part: str) -> dict[str, Tensor]:
    return official_state(fixture.arrays, f"{variant}/state_dict/{part}")


def _variants(fixture: Fixture, suffix: str) -> list[str]:
    return sorted(key.removesuffix(suffix) for key in fixture.arrays if key.endswith(suffix))

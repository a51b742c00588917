"""The encoder, the decoder and the box losses against numbers of the official code."""

import json

import pytest
import torch
from torch.testing import assert_close

from perception.checkpoint.upstream import convert_code, convert_state, official_to_ours
from perception.models.box_head import BoxTargets
from perception.models.history import rotate_bev
from perception.models.seg_encode import SegEncode
from perception.registry import MODELS
from perception.structures import BEVGrid
from tests.models.official_configs import convert_model_config
from tests.models.parity_fixtures import convert_boxes, load, read_arrays, require

FIXTURES = ["a_nohist_20x20", "b_hist_20x20", "b_hist_16x24_asym", "c_recurrent_3frames", "d_4level_20x20"]


def near(actual, expected, atol):
    assert_close(actual, expected, atol=atol, rtol=0)


def record(modules):
    """Outputs of named modules, filled by the next forward."""
    seen = {}
    for name, module in modules.items():
        module.register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, out))
    return seen


@pytest.mark.parametrize("name", FIXTURES)
def test_encoder_decoder_losses_and_boxes(name):
    fixture = load(name)
    encoder, head, arrays = fixture.encoder.eval(), fixture.head.eval(), fixture.arrays
    watched = {}
    for i, layer in enumerate(encoder.layers):
        watched |= {f"enc/layer{i}/tsa_out": layer.temporal_self_attention}
        watched |= {f"enc/layer{i}/sca_out": layer.spatial_cross_attention, f"enc/layer{i}/out": layer}
    watched |= {f"dec/layer{i}": layer for i, layer in enumerate(head.decoder)}
    watched |= {f"dec/layer{i}/cross_attn_out": layer.cross_attention for i, layer in enumerate(head.decoder)}
    seen = record(watched)

    frames = sum(key.endswith("/can_bus") for key in arrays)
    bev = arrays.get("inputs/prev_bev")
    for frame in range(frames):
        bev = fixture.encode(frame, bev)
        if frame < frames - 1:
            near(bev, arrays[f"outputs/frame{frame}/bev_embed_only_bev"], 1e-4)
    for key, value in seen.items():
        expected = arrays.get(f"outputs/{key}")
        if expected is not None:
            near(value, expected, 1e-4)
    near(bev, arrays["outputs/enc/out"], 1e-4)

    outputs = head(bev)
    for i in range(len(head.decoder)):
        near(seen[f"dec/layer{i}"][0], arrays["outputs/dec/inter_states"][i, :, 0], 5e-5)
        near(
            seen[f"dec/layer{i}/cross_attn_out"][0],
            arrays[f"outputs/dec/layer{i}/cross_attn_out"][:, 0],
            5e-5,
        )
    near(outputs.cls_scores, arrays["outputs/head/all_cls_scores"], 2e-5)
    near(outputs.codes, convert_code(arrays["outputs/head/all_bbox_preds"]), 2e-4)

    targets = [BoxTargets(convert_boxes(arrays["inputs/gt_boxes_bottom"]), arrays["inputs/gt_labels"])]
    for i, matched in enumerate(head.match(outputs, targets)):
        assert torch.equal(matched.labels[0], arrays[f"outputs/loss/layer{i}/labels"])
    losses = head.loss(outputs, targets)
    near(losses["cls.loss_focal"], arrays["outputs/loss/terms/loss_cls"][0], 2e-5)
    near(losses["cls.d0.loss_focal"], arrays["outputs/loss/terms/d0.loss_cls"][0], 2e-5)
    near(losses["box.loss_l1"] + losses["velocity.loss_l1"], arrays["outputs/loss/terms/loss_bbox"], 2e-5)
    near(
        losses["box.d0.loss_l1"] + losses["velocity.d0.loss_l1"],
        arrays["outputs/loss/terms/d0.loss_bbox"],
        2e-5,
    )

    decoded = head.predict(outputs)[0]
    near(decoded.scores, arrays["outputs/decode/scores"], 5e-6)
    assert torch.equal(decoded.labels, arrays["outputs/decode/labels"])
    expected = convert_boxes(arrays["outputs/decode/bboxes_bottom"])
    expected[:, 6] = torch.atan2(expected[:, 6].sin(), expected[:, 6].cos())
    near(decoded.boxes, expected, 2e-4)


def test_gradients_of_every_parameter():
    fixture = load("a_nohist_20x20")
    bev = fixture.encode(0, None)
    outputs = fixture.head(bev)
    arrays = fixture.arrays
    targets = [BoxTargets(convert_boxes(arrays["inputs/gt_boxes_bottom"]), arrays["inputs/gt_labels"])]
    losses = fixture.head.loss(outputs, targets)
    sum(value for key, value in losses.items() if "loss" in key).backward()
    ours = {f"bev_encoder.{name}": p for name, p in fixture.encoder.named_parameters()}
    ours |= {f"box_head.{name}": p for name, p in fixture.head.named_parameters()}
    official = {
        key.removeprefix("outputs/grad/"): value
        for key, value in arrays.items()
        if key.startswith("outputs/grad/pts_bbox_head")
    }
    assert len(official) > 80
    for name, expected in convert_state(official).items():
        near(ours[name].grad, expected, 1e-4 * max(float(expected.abs().max()), 1e-3))


@pytest.mark.parametrize("case", range(9))
def test_rotation_is_upstreams(case):
    arrays = read_arrays("micro_rotate")
    image = arrays[f"{case}/input"]  # (C, h, w)
    height, width = image.shape[1:]
    grid = BEVGrid((-1.0, -1.0, -1.0, 1.0, 1.0, 1.0), height, width)
    center = tuple(arrays[f"{case}/center_xy"].tolist())
    rotated = rotate_bev(image.flatten(1).T[None], arrays[f"{case}/angle_deg"][None], grid, center)
    assert torch.equal(rotated[0].T.unflatten(1, (height, width)), arrays[f"{case}/output"])


def test_segmentation_decoder():
    arrays = read_arrays("e_seg_binze_20x20")
    official = {
        k.removeprefix("state_dict/"): v for k, v in arrays.items() if "dict/pts_bbox_head.seg_d" in k
    }
    decoder = SegEncode(in_channels=32, num_classes=4).eval()
    decoder.load_state_dict(
        {official_to_ours(k).removeprefix("seg_head.seg_encode."): v for k, v in official.items()}
    )
    near(decoder(arrays["outputs/seg/bev_cropped"]), arrays["outputs/head/seg_preds"], 5e-5)


LISTS = ["bevformer_tiny", "bevformer_small", "bevformer_base", "binze_small_seg_det_r101dcn",
         "binze_small_seg_det_r50_nodcn"]  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_parameter_names_and_shapes_map_one_to_one(name):
    info = json.loads(require(f"params/{name}.json").read_text())
    with torch.device("meta"):
        model = MODELS.build(convert_model_config(info["model_config"]))
    ours = {key: list(value.shape) for key, value in model.state_dict().items()}
    official = {official_to_ours(key): value["shape"] for key, value in info["tensors"].items()}
    assert ours == official
    assert len(official) == len(info["tensors"])
    assert sum(p.numel() for p in model.parameters()) == info["params_total"]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == info["params_requires_grad"]

"""Every parity fixture that is there, whatever its sizes; and that a wrong switch is noticed."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from perception.checkpoint.upstream import convert_code, restore_state
from perception.engine.parity import Fixture, compare_fixture, find_fixtures, read_fixture
from perception.engine.parity.modules import build_heads, head_configs
from perception.models.box_head import BoxTargets
from perception.registry import MODELS
from perception.utils import DataError
from tests.parity import FOLDER

PATHS = {path.stem: path for path in find_fixtures(FOLDER)} if FOLDER.is_dir() else {}
no_fixtures = pytest.mark.skipif(not PATHS, reason=f"no parity fixture in {FOLDER}; set PERCEPTION_PARITY")


def failures(compare):
    return [difference for difference in compare.differences if not difference.is_within]


def read(name):
    if name not in PATHS:
        pytest.skip(f"no fixture {name} in {FOLDER}")
    return read_fixture(PATHS[name])


def with_head(fixture, **changes):
    """The fixture with another official head config."""
    return replace(fixture, info={**fixture.info, "head_config": {**fixture.info["head_config"], **changes}})


@no_fixtures
@pytest.mark.parametrize("name", PATHS)
def test_fixture_is_reproduced_within_its_tolerances(name):
    compare = compare_fixture(read_fixture(PATHS[name]))
    assert failures(compare) == []
    assert len(compare.differences) > 0
    assert compare.unused == []  # nothing that the official code said is left out


def test_corrected_shift_is_not_bin_zes():
    fixture = read("g_hist_alias_binze")
    compare = compare_fixture(replace(fixture, info={**fixture.info, "repo": "BEVFormer"}))
    wrong = {difference.quantity: difference.error for difference in failures(compare)}
    assert wrong["reference points"] > 0.01
    assert wrong["encoder layers"] > 0.1


def test_rotation_about_the_grids_own_centre_is_not_upstreams():
    fixture = read("b_hist_20x20")
    transformer = {**fixture.info["head_config"]["transformer"], "rotate_center": [10, 10]}
    wrong = {
        d.quantity: d.error for d in failures(compare_fixture(with_head(fixture, transformer=transformer)))
    }
    assert wrong["rotated history"] > 1000  # unequal entries
    assert wrong["encoder layers"] > 0.1


def test_another_step_of_the_slicer_is_not_bin_zes():
    fixture = read("e_seg_binze_20x20")
    grid = {**fixture.info["head_config"]["det_grid_conf"], "xbound": [-51.2, 51.2, 5.0]}
    wrong = {d.quantity for d in failures(compare_fixture(with_head(fixture, det_grid_conf=grid)))}
    assert {"map features", "map scores", "map loss"} <= wrong


def official_config():
    """An official head config with sizes of no fixture."""
    pc_range = [-20.0, -35.0, -3.0, 40.0, 25.0, 2.0]
    dims = 12
    temporal = {"type": "TemporalSelfAttention", "num_heads": 3, "num_points": 2}
    sampling = {"num_heads": 3, "num_points": 6, "num_levels": 2}
    layer = {"ffn_cfgs": {"feedforward_channels": 20}}
    return {
        "bev_h": 7,
        "bev_w": 11,
        "num_query": 9,
        "num_classes": 4,
        "with_box_refine": True,
        "transformer": {
            "embed_dims": dims,
            "rotate_center": [4, 3],
            "num_cams": 2,
            "num_feature_levels": 3,
            "encoder": {
                "num_layers": 3,
                "pc_range": pc_range,
                "num_points_in_pillar": 3,
                "transformerlayers": {**layer, "attn_cfgs": [temporal, {"deformable_attention": sampling}]},
            },
            "decoder": {
                "num_layers": 1,
                "transformerlayers": {**layer, "attn_cfgs": [{"num_heads": 2}, {"num_heads": 2, "num_points": 5}]},
            },
        },
        "bbox_coder": {"post_center_range": [-50, -50, -9, 50, 50, 9], "max_num": 8},
        "loss_cls": {"loss_weight": 1.5},
        "loss_bbox": {"loss_weight": 0.5},
        "train_cfg": {"assigner": {"cls_cost": {"weight": 3.0}, "reg_cost": {"weight": 0.1}}},
        "task": {"det": True, "seg": True},
        "det_grid_conf": {"xbound": [-30.0, 30.0, 4.0], "ybound": [-30.0, 30.0, 6.0]},
        "map_grid_conf": {"xbound": [-12.0, 8.0, 1.0], "ybound": [-6.0, 10.0, 1.0]},
        "seg_encoder": {"outC": 3},
        "loss_seg": {"loss_weight": 2.0, "class_weight": [0.5, 1.0, 2.0]},
    }  # fmt: skip


@pytest.fixture
def odd_fixture(tmp_path):
    """A fixture of odd sizes; its numbers are our own, so it tells whether all sizes are read, and no more."""
    torch.manual_seed(0)
    config = official_config()
    parts = {name: MODELS.build(part) for name, part in head_configs(config, is_binze=True).items()}
    state = {
        f"{part}.{name}": value
        for part, module in parts.items()
        for name, value in module.state_dict().items()
    }
    heads = build_heads(config, state, is_binze=True).eval()
    features = [torch.randn(1, 2, 12, height, width) for height, width in ((3, 5), (2, 2))]
    lidar2img = torch.randn(2, 4, 4) * 5
    motion, prev_bev = torch.randn(18, dtype=torch.float64), torch.randn(1, 77, 12)
    boxes = torch.rand(2, 9) + 1.0
    target = torch.randint(0, 3, (1, 16, 20))
    with torch.no_grad():
        bev = heads["bev_encoder"](features, lidar2img[None], motion[None], (24, 40), prev_bev)
        outputs = heads["box_head"](bev)
        losses = heads["box_head"].loss(outputs, [BoxTargets(boxes, torch.tensor([1, 3]))])
        logits = heads["seg_head"](bev)
        losses |= heads["seg_head"].loss(logits, [target[0]])
    upstream_boxes = boxes[:, [0, 1, 2, 4, 3, 5, 6, 7, 8]]
    upstream_boxes[:, 6] = -boxes[:, 6] - torch.pi / 2
    arrays = {
        **{f"state_dict/{name}": value for name, value in restore_state(state).items()},
        **{f"inputs/frame0/mlvl_feats{level}": feature for level, feature in enumerate(features)},
        "inputs/frame0/lidar2img": lidar2img,
        "inputs/frame0/can_bus": motion,
        "inputs/frame0/img_shape": torch.tensor([[24, 40, 3]] * 2),
        "inputs/prev_bev": prev_bev,
        "inputs/gt_boxes_bottom": upstream_boxes,
        "inputs/gt_labels": torch.tensor([1, 3]),
        "inputs/semantic_indices": target,
        "outputs/enc/out": bev,
        "outputs/head/all_cls_scores": outputs.cls_scores,
        "outputs/head/all_bbox_preds": convert_code(outputs.codes),
        "outputs/head/seg_preds": logits,
        "outputs/loss/layer0/labels": heads["box_head"]
        .match(outputs, [BoxTargets(boxes, torch.tensor([1, 3]))])[0]
        .labels[0],
        "outputs/loss/terms/loss_cls": losses["cls.loss_focal"][None],
        "outputs/loss/terms/loss_seg": losses["seg.loss_ce"],
    }
    folder = tmp_path / "fixtures"
    folder.mkdir()
    np.savez(folder / "odd.npz", **{name: value.numpy() for name, value in arrays.items()})
    info = {"repo": "BEVFormer_segmentation_detection", "head_config": config}
    (folder / "odd.json").write_text(json.dumps(info))
    return tmp_path


def test_sizes_come_from_the_fixture(odd_fixture):
    (path,) = find_fixtures(odd_fixture)
    assert find_fixtures(odd_fixture / "fixtures") == [path]
    compare = compare_fixture(read_fixture(path))
    assert failures(compare) == []
    assert compare.unused == []
    quantities = {difference.quantity for difference in compare.differences}
    assert {
        "encoder layers",
        "class scores",
        "box codes",
        "map scores",
        "class loss",
        "map loss",
    } <= quantities


def test_a_wrong_number_is_noticed(odd_fixture):
    fixture = read_fixture(find_fixtures(odd_fixture)[0])
    for key in ("outputs/enc/out", "outputs/loss/terms/loss_seg", "outputs/loss/layer0/labels"):
        arrays = {**fixture.arrays, key: fixture.arrays[key] + 1}
        wrong = failures(compare_fixture(replace(fixture, arrays=arrays)))
        assert [difference.array for difference in wrong] == [key]


def test_what_is_not_compared_is_told(odd_fixture):
    fixture = read_fixture(find_fixtures(odd_fixture)[0])
    arrays = {**fixture.arrays, "outputs/enc/something_else": torch.zeros(1)}
    assert compare_fixture(replace(fixture, arrays=arrays)).unused == ["outputs/enc/something_else"]


@pytest.mark.parametrize("flag", ["use_shift", "rotate_prev_bev", "use_can_bus"])
def test_a_config_without_counterpart_is_refused(flag):
    config = official_config()
    config["transformer"][flag] = False
    with pytest.raises(ValueError, match=flag):
        head_configs(config, is_binze=False)


def test_missing_unreadable_and_unknown_fixtures_are_named(tmp_path):
    with pytest.raises(DataError, match="no parity fixture"):
        find_fixtures(tmp_path)
    (tmp_path / "broken.npz").write_bytes(b"")
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(DataError, match="cannot be read"):
        read_fixture(find_fixtures(tmp_path)[0])
    with pytest.raises(DataError, match="no known kind"):
        compare_fixture(Fixture("strange", {}, {"a": torch.zeros(1)}))

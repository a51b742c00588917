"""Official checkpoints by the command line: the fixtures' numbers come out, and what does not fit is refused."""

import json
from collections import OrderedDict

import pytest
import torch
from safetensors import safe_open

from perception.checkpoint import load_weights, save_checkpoint
from perception.checkpoint.upstream import convert_code
from perception.cli.main import main
from perception.config import dump_json, load_config
from perception.engine.parity.convention import convert_boxes
from perception.engine.parity.modules import detector_config
from perception.registry import MODELS
from perception.structures import CLASS_NAMES
from perception.utils import sha256_file
from tests.models.parity_fixtures import read_arrays
from tests.models.small import small_config
from tests.parity import require

FIXTURES = ["a_nohist_20x20", "b_hist_20x20", "d_4level_20x20", "e_seg_binze_20x20", "h_full_detector_mini"]


def run(words, capsys, code=0):
    assert main([str(word) for word in words]) == code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.out if code == 0 else captured.err


def write_config(folder, model):
    path = folder / "config.json"
    path.write_text(json.dumps(dump_json({"model": model})))
    return path


def write_official(path, state, **changes):
    meta = {"epoch": 24, "iter": 3, "mmcv_version": "1.4.0", "CLASSES": CLASS_NAMES, **changes}
    torch.save({"meta": meta, "state_dict": OrderedDict(state), "optimizer": {"state": {}}}, path)
    return path


def fixture_detector(info):
    """Upstream's detector config of a fixture; those of the head alone get a small backbone."""
    if "model_config" in info:
        return info["model_config"]
    head = info["head_config"]
    levels = head["transformer"]["encoder"]["transformerlayers"]["attn_cfgs"][1]["deformable_attention"][
        "num_levels"
    ]
    backbone = {"type": "ResNet", "depth": 18, "base_channels": 4, "out_indices": [3]}
    neck = {
        "in_channels": [32],
        "out_channels": head["in_channels"],
        "num_outs": levels,
        "add_extra_convs": "on_output",
    }
    return {"img_backbone": backbone, "img_neck": {"type": "FPN", **neck}, "pts_bbox_head": head}


def official_state(arrays, model):
    """The fixture's weights; a backbone that it lacks has our names, which are upstream's."""
    state = {
        key.removeprefix("state_dict/"): value
        for key, value in arrays.items()
        if key.startswith("state_dict/")
    }
    return {**{k: v for k, v in model.state_dict().items() if k.startswith("img_")}, **state}


def near(actual, expected, atol):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def forward(model, arrays, info):
    """Last frame's BEV and head outputs, as the fixture was made."""
    frames = sorted({key.split("/")[1] for key in arrays if key.startswith("inputs/frame")})
    bev = arrays.get("inputs/prev_bev")
    if "model_config" in info:  # frame 0 of scene A, frame 1 follows it, frame 2 begins scene B
        frames, bev, prefix = frames[:2], None, "outputs/test/frame1"
    else:
        prefix = "outputs/head"
    for frame in frames:
        inputs = f"inputs/{frame}"
        if f"{inputs}/img" in arrays:
            image = arrays[f"{inputs}/img"]
            features = model.extract_features(image if image.dim() == 5 else image[None])
            size, motion = tuple(image.shape[-2:]), arrays[f"outputs/test/{frame}/can_bus_seen_by_head"]
        else:
            count = sum(key.startswith(f"{inputs}/mlvl_feats") for key in arrays)
            features = [arrays[f"{inputs}/mlvl_feats{level}"] for level in range(count)]
            size, motion = tuple(info["img_shape_hw"]), arrays[f"{inputs}/can_bus"]
        bev = model.bev_encoder(features, arrays[f"{inputs}/lidar2img"][None], motion[None], size, bev)
    return model.forward_heads(bev), prefix


@pytest.mark.parametrize("name", FIXTURES)
def test_fixture_there_and_back(name, tmp_path, capsys):
    arrays, info = read_arrays(name), json.loads(require(f"fixtures/{name}.json").read_text())
    config = write_config(tmp_path, detector_config(fixture_detector(info), is_binze="binze" in name))
    torch.manual_seed(0)
    model = MODELS.build(load_config(config).model).eval()
    state = official_state(arrays, model)
    source = write_official(tmp_path / "official.pth", state)

    text = run(["convert-checkpoint", source, "--config", config, "--out", tmp_path / "ours"], capsys)
    assert sha256_file(source) in text
    assert f"{len(state)} tensors" in text
    assert "not read: optimizer" in text
    converted = tmp_path / "ours" / "model.safetensors"
    with safe_open(converted, "pt") as file:
        assert file.metadata()["source_sha256"] == sha256_file(source)
    model.load_state_dict(load_weights(converted).model_state)
    with torch.no_grad():
        outputs, prefix = forward(model, arrays, info)
    near(outputs["bev"].flatten(0, 1), arrays[f"{prefix}/bev_embed"].flatten(0, -2), 1e-4)
    near(outputs["boxes"].cls_scores, arrays[f"{prefix}/all_cls_scores"], 1e-4 if "h_" in name else 2e-5)
    near(outputs["boxes"].codes, convert_code(arrays[f"{prefix}/all_bbox_preds"]), 2e-4)
    decoded = model.box_head.predict(outputs["boxes"])[0]
    key = "outputs/test/frame1/boxes_bottom" if "h_" in name else "outputs/decode/bboxes_bottom"
    boxes = convert_boxes(arrays[key])
    boxes[:, 6] = torch.atan2(boxes[:, 6].sin(), boxes[:, 6].cos())
    near(decoded.boxes, boxes, 2e-4)
    if "e_" in name:
        near(outputs["seg_logits"], arrays["outputs/head/seg_preds"], 1e-4)

    words = ["convert-checkpoint", converted, "--config", config, "--to-upstream", "--out", tmp_path / "back"]
    assert "classes: car, truck" in run(words, capsys)
    back = torch.load(tmp_path / "back" / "model.pth", weights_only=True)
    assert back["meta"]["CLASSES"] == list(CLASS_NAMES)
    assert back["state_dict"].keys() == state.keys()
    assert all(torch.equal(back["state_dict"][key], value) for key, value in state.items())


@pytest.fixture
def small(tmp_path):
    """A small model's config, its model, and an official file with its weights."""
    from perception.checkpoint.upstream import restore_state

    torch.manual_seed(0)
    config = write_config(tmp_path, small_config(seg=None))
    model = MODELS.build(load_config(config).model)
    state = restore_state(model.state_dict())
    return config, model, state, lambda state, **meta: write_official(tmp_path / "x.pth", state, **meta)


def refused(small, state, capsys, code=4, **meta):
    config, _, _, write = small
    path = write(state, **meta)
    out = path.parent / "out"
    text = run(["convert-checkpoint", path, "--config", config, "--out", out], capsys, code)
    assert not out.exists()
    return text


def test_missing_unknown_and_reshaped_names_are_listed(small, capsys):
    state = small[2]
    name = "pts_bbox_head.bev_embedding.weight"
    misspelt = {key.replace("bev_embedding", "bev_embeding"): value for key, value in state.items()}
    text = refused(small, misspelt, capsys)
    assert f"1 missing: {name}; 1 unknown: pts_bbox_head.bev_embeding.weight." in text
    assert f"Is pts_bbox_head.bev_embeding.weight meant to be {name}?" in text
    assert f"1 of another shape: {name} [5, 16] (the config's: [120, 16])" in refused(
        small, {**state, name: torch.zeros(5, 16)}, capsys
    )
    text = refused(small, {**state, "pts_bbox_head.seg_decoder.conv1.weight": torch.zeros(1)}, capsys)
    assert "The checkpoint has a map head, the config has none." in text
    assert "twice" in refused(small, {**state, f"module.{name}": state[name]}, capsys)


def test_a_map_head_that_only_the_config_has(small, capsys, tmp_path):
    _, _, state, write = small
    config = tmp_path / "seg.json"
    config.write_text(json.dumps(dump_json({"model": small_config()})))
    words = ["convert-checkpoint", write(state), "--config", config, "--out", tmp_path / "out"]
    assert "add --set model.seg_head=null" in run(words, capsys, 4)
    assert "next:" in run([*words, "--set", "model.seg_head=null"], capsys)


def test_batch_counters_may_be_missing(small, capsys, tmp_path):
    config, model, state, write = small
    old = {f"module.{key}": value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    text = run(["convert-checkpoint", write(old), "--config", config, "--out", tmp_path / "out"], capsys)
    assert f"set to 0 {len(state) - len(old)} tensors: img_backbone.bn1.num_batches_tracked" in text
    weights = load_weights(tmp_path / "out" / "model.safetensors").model_state
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_classes_in_another_order_move_with_their_rows(small, capsys, tmp_path):
    config, model, state, write = small
    theirs = CLASS_NAMES[3:] + CLASS_NAMES[:3]
    text = run(
        ["convert-checkpoint", write(state, CLASSES=theirs), "--config", config, "--out", tmp_path / "o"],
        capsys,
    )
    assert "classes: reordered" in text
    weights = load_weights(tmp_path / "o" / "model.safetensors").model_state
    key = "box_head.cls_branches.1.6.weight"
    for row, name in enumerate(CLASS_NAMES):
        assert torch.equal(weights[key][row], model.state_dict()[key][theirs.index(name)])
    assert "only in the checkpoint ['tram']" in refused(
        small, state, capsys, CLASSES=("tram", *CLASS_NAMES[1:])
    )
    path = write(state, CLASSES=None)
    words = ["convert-checkpoint", path, "--config", config, "--out", tmp_path / "p"]
    assert "not named in the file" in run(words, capsys)


def test_a_model_without_boxes_leaves_their_queries_out(capsys, tmp_path):
    """Bin-ze's map-only head keeps object queries, code weights and reference points that nothing uses."""
    from perception.checkpoint.upstream import restore_state

    config = write_config(tmp_path, small_config(box=None))
    state = restore_state(MODELS.build(load_config(config).model).state_dict())
    extra = {
        "pts_bbox_head.code_weights": torch.ones(10),
        "pts_bbox_head.query_embedding.weight": torch.ones(2, 2),
    }
    source = write_official(tmp_path / "x.pth", {**state, **extra})
    text = run(["convert-checkpoint", source, "--config", config, "--out", tmp_path / "out"], capsys)
    assert "left out 2 tensors: pts_bbox_head.code_weights, pts_bbox_head.query_embedding.weight" in text
    assert (
        load_weights(tmp_path / "out" / "model.safetensors")
        .model_state.keys()
        .isdisjoint({"box_head.code_weights"})
    )


def test_the_switches_that_official_weights_need_are_told(small, capsys, tmp_path):
    config, _, state, write = small
    words = ["convert-checkpoint", write(state), "--config", config, "--out"]
    text = run([*words, tmp_path / "a"], capsys)
    option = """--set 'model.upstream_compat={"rotate_center":[100,100],"aliased_shift":true}'"""
    assert option in text
    value = option.partition("'")[2].rstrip("'")
    assert "are set in the config" in run([*words, tmp_path / "b", "--set", value], capsys)


def test_a_run_folder_brings_its_own_config(small, capsys, tmp_path):
    config, model, state, _ = small
    folder = tmp_path / "run"
    shuffled = list(CLASS_NAMES[::-1])
    save_checkpoint(
        folder / "checkpoints",
        step=3,
        model_state=model.state_dict(),
        optimizer_state={},
        state={"class_names": shuffled},
        rng_states={},
    )
    (folder / "config.json").write_text(config.read_text())
    text = run(["convert-checkpoint", folder, "--to-upstream", "--out", tmp_path / "up"], capsys)
    assert "rotate_center" in text
    assert "2023-07-27" in text
    back = torch.load(tmp_path / "up" / "model.pth", weights_only=True)
    assert back["meta"]["CLASSES"] == list(CLASS_NAMES)
    key = "pts_bbox_head.cls_branches.0.6.bias"
    assert torch.equal(back["state_dict"][key], state[key].flip(0))
    again = ["convert-checkpoint", folder, "--to-upstream", "--out", tmp_path / "up"]
    assert "exists already" in run(again, capsys, 4)


def test_what_has_no_counterpart_upstream(capsys, tmp_path):
    cfg = load_config("bevformer_nano_det", ["model.box_head.num_query_groups=1"])
    model = dump_json({"model": cfg.model})["model"]
    path = tmp_path / "nano.json"
    path.write_text(json.dumps({"model": model}))
    words = [
        "convert-checkpoint",
        tmp_path / "m.safetensors",
        "--config",
        path,
        "--to-upstream",
        "--out",
        tmp_path / "o",
    ]
    assert "code_scale" in run(words, capsys, 2)


class Shell:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return (os.system, (f"touch {self.path}",))


def test_a_file_with_code_is_refused_and_runs_nothing(small, capsys, tmp_path):
    victim = tmp_path / "touched"
    text = refused(small, small[2], capsys, hook=Shell(victim))
    assert "x.pth is refused: it names posix.system" in text
    assert not victim.exists()


def test_words_that_are_wrong(small, capsys, tmp_path):
    config, _, state, write = small
    path, out = write(state), tmp_path / "out"
    assert "does not exist" in run(
        ["convert-checkpoint", "no.pth", "--config", config, "--out", out], capsys, 4
    )
    assert "needs --config" in run(["convert-checkpoint", path, "--out", out], capsys, 2)
    words = ["convert-checkpoint", path, "--config", "bevformer_official_bse", "--out", out]
    assert "Did you mean 'bevformer_official_base" in run(words, capsys, 2)
    words = ["convert-checkpoint", path, "--config", config, "--to-upstream", "--out", out]
    assert "convert-checkpoint" in run(words, capsys, 4)
    with pytest.raises(SystemExit) as stop:
        main(["convert-chekpoint", str(path)])
    assert stop.value.code == 2
    assert "Did you mean 'convert-checkpoint'?" in capsys.readouterr().err

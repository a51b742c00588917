"""`verify`, `test` and `predict` on what was exported; `test --format-only` for a split without labels."""

import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from nuscenes import NuScenes
from nuscenes.eval.common.loaders import load_prediction
from nuscenes.eval.detection.data_classes import DetectionBox

from perception.checkpoint import save_checkpoint
from perception.cli.main import main
from perception.config import load_config
from perception.config.serialise import dump_json
from perception.datasets import NuScenesBEVDataset, prepare, read_metainfo
from perception.engine.video import _full_size
from perception.structures import CLASS_NAMES, MAP_CLASSES
from tests.runtime.toy_export import write_bevformer


@pytest.fixture(scope="module")
def export(options, tmp_path_factory):
    cfg = load_config("bevformer_nano", options[1:])
    return write_bevformer(
        tmp_path_factory.mktemp("export") / "toy",
        map_shape=(200, 400),
        classes={"boxes": CLASS_NAMES, "seg": MAP_CLASSES},
        training_config=dump_json(cfg),
    )


@pytest.fixture(scope="module")
def unlabelled_root(synthetic_root, tmp_path_factory):
    """A root of v1.0-test: the small world's scenes under names of the test split, without annotations or maps."""
    root = tmp_path_factory.mktemp("nuscenes") / "test"
    tables = root / "v1.0-test"
    shutil.copytree(synthetic_root / "v1.0-mini", tables)
    for name in ("samples", "maps"):
        (root / name).symlink_to(synthetic_root / name)
    for table in ("sample_annotation", "instance"):
        (tables / f"{table}.json").write_text("[]")
    scenes = json.loads((tables / "scene.json").read_text())
    for number, scene in enumerate(scenes):
        scene["name"] = ("scene-0077", "scene-0078")[number]
    (tables / "scene.json").write_text(json.dumps(scenes))
    prepare(root, out=root / "perception_index", progress=False)
    return root


def test_verify_an_export(export, tmp_path, capsys):
    assert main(["verify", str(export), "--threads", "1"]) == 0
    output = capsys.readouterr().out
    assert "files have the hashes of the manifest" in output
    assert "fp32 bev" in output
    broken = shutil.copytree(export, tmp_path / "broken")
    (broken / "model.onnx").write_bytes(b"x")
    assert main(["verify", str(broken)]) == 4
    assert "model.onnx is damaged or was exchanged" in capsys.readouterr().err
    assert main(["verify", str(export), "--variant", "fp16"]) == 1
    assert "no variant 'fp16'" in capsys.readouterr().err


def test_verify_a_run_and_its_checkpoints(tmp_path, capsys):
    run = tmp_path / "run"
    for step in (1, 2):
        save_checkpoint(
            run / "checkpoints",
            step=step,
            model_state={"w": torch.zeros(2)},
            optimizer_state={},
            state={"step": step},
            rng_states={0: {}},
        )
    assert main(["verify", str(run)]) == 0
    assert capsys.readouterr().out.count("have the hashes of the manifest") == 2
    weights = run / "checkpoints" / "step_00000002" / "model.safetensors"
    assert main(["verify", str(weights)]) == 0
    assert "1 tensors" in capsys.readouterr().out
    weights.write_bytes(weights.read_bytes() + b"x")
    assert main(["verify", str(run)]) == 4
    output = capsys.readouterr().out
    assert "step_00000002: DAMAGED" in output
    assert "step_00000001: 4 files have" in output
    assert main(["verify", str(weights.parent)]) == 4
    assert main(["verify", str(tmp_path / "nowhere")]) == 4
    assert main(["verify", str(tmp_path)]) == 4
    assert main(["verify", str(run), "--variant", "fp32"]) == 2


def test_test_an_export(export, tmp_path, capsys):
    work_dir = tmp_path / "scores"
    assert main(["test", str(export), "--work-dir", str(work_dir), "--threads", "1"]) == 0
    assert "NDS" in capsys.readouterr().out
    assert json.loads((work_dir / "metrics_fp32.json").read_text())["comparable"] is True


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["EXPORT", "--checkpoint", "x.safetensors"], "leave --checkpoint out"),
        (["EXPORT", "--untrained"], "leave --untrained and --baseline out"),
        (["bevformer_nano", "--untrained", "--variant", "int8"], "--variant goes with an export folder"),
        (["bevformer_nano", "--untrained", "--full-images"], "--full-images goes with an export folder"),
        (["EXPORT", "--format-only"], "--format-only needs a folder, or --out FILE"),
        (["EXPORT", "--out", "x.json"], "--out FILE goes with --format-only"),
        (["EXPORT", "--format-only", "--out", "folder"], "must end in .json"),
    ],
)
def test_options_that_do_not_go_together(export, capsys, words, message):
    assert main(["test", *[str(export) if word == "EXPORT" else word for word in words]]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scene", "scene-0103"], "--scene NAME and --video FILE go together"),
        (["--fps", "5"], "--fps goes with --video"),
        (["--scene", "a", "--video", "a.mp4", "--num", "2"], "--num chooses pictures"),
        (["--scene", "a", "--video", "a.gif"], "must end in .mp4 or .avi"),
        (["--scene", "scene-9999", "--video", "a.mp4"], "there is no scene 'scene-9999'"),
    ],
)
def test_videos_that_cannot_be(export, capsys, words, message):
    assert main(["predict", str(export), *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no such index"),
        ('{"data_list": []}', "it has no metainfo"),
        ("[", "not a readable index"),
    ],
)
def test_an_index_that_is_none(export, tmp_path, capsys, text, message):
    index = tmp_path / "index.json"
    if text is not None:
        index.write_text(text)
    assert main(["test", str(export), "--index", str(index)]) == 3
    assert message in capsys.readouterr().err


def test_an_index_whose_samples_come_first(tmp_path):
    index = tmp_path / "index.json"
    index.write_text('{"data_list": [{"token": "a"}], "metainfo": {"version": "v1.0-test"}}')
    assert read_metainfo(index) == {"version": "v1.0-test"}


def test_other_verbs_want_torchs_weights(export, capsys):
    assert main(["visualize", str(export)]) == 2
    assert main(["pseudo-label", str(export), "--out", "x"]) == 2
    assert "is an export folder" in capsys.readouterr().err


def scene_of(index: Path) -> str:
    return json.loads(index.read_text())["data_list"][0]["scene_name"]


@pytest.mark.parametrize("ending", ["mp4", "avi"])
def test_a_scene_as_a_video(export, index, tmp_path, capsys, ending):
    scene = scene_of(index / "v1.0-mini_mini_val.json")
    out = tmp_path / "videos" / f"scene.{ending}"
    assert main(["predict", str(export), "--scene", scene, "--video", str(out)]) == 0
    captured = capsys.readouterr()
    assert captured.out.strip() == str(out)
    assert f"Drawing {scene}: 4" in captured.err
    video = cv2.VideoCapture(str(out))
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(2.0, abs=0.01)
    frames = []
    while (frame := video.read())[0]:
        frames.append(frame[1])
    assert len(frames) == 4
    height, width = frames[0].shape[:2]
    assert width > 1.8 * height > 500
    assert all(frame.std() > 20 for frame in frames)
    assert all(np.abs(frame.astype(int) - frames[0]).mean() > 1 for frame in frames[1:])


def test_a_videos_images_are_found_below_a_relative_root(index, synthetic_root, monkeypatch):
    monkeypatch.chdir(synthetic_root.parent)
    file = os.path.relpath(index / "v1.0-mini_mini_val.json", synthetic_root)
    dataset = NuScenesBEVDataset(ann_file=file, data_root=synthetic_root.name, test_mode=True, pipeline=[])
    assert _full_size(dataset).sample_tokens == dataset.sample_tokens


def test_pictures_of_an_export(export, tmp_path, capsys):
    assert main(["predict", str(export), "--num", "2", "--out", str(tmp_path)]) == 0
    assert len(list(tmp_path.glob("prediction_*.jpg"))) == 2
    records = json.loads((tmp_path / "predictions.json").read_text())["samples"]
    assert len(records) == 2


def check_submission(path: Path, root: Path) -> None:
    """As the devkit's evaluation reads it."""
    tables = NuScenes("v1.0-test", str(root), verbose=False)
    boxes, meta = load_prediction(str(path), 500, DetectionBox, verbose=False)
    assert meta == {
        "use_camera": True,
        "use_lidar": False,
        "use_radar": False,
        "use_map": False,
        "use_external": False,
    }
    assert set(boxes.sample_tokens) == {sample["token"] for sample in tables.sample}
    assert len(boxes.all) > 0


def test_a_submission_of_an_export(export, unlabelled_root, tmp_path, capsys):
    out = tmp_path / "deep" / "results.json"
    index = unlabelled_root / "perception_index" / "v1.0-test_test.json"
    words = ["test", str(export), "--index", str(index), "--data-root", str(unlabelled_root)]
    assert main([*words, "--format-only", "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    assert [path.name for path in out.parent.iterdir()] == ["results.json"]
    check_submission(out, unlabelled_root)
    assert not (export / "metrics_fp32.json").exists()


def test_a_submission_of_a_model(options, unlabelled_root, tmp_path):
    out = tmp_path / "results.json"
    index = unlabelled_root / "perception_index" / "v1.0-test_test.json"
    words = [
        "test",
        "bevformer_nano",
        "--untrained",
        "--index",
        str(index),
        "--data-root",
        str(unlabelled_root),
    ]
    words += ["--work-dir", str(tmp_path / "run"), "--format-only", "--out", str(out)]
    assert main([*words, "--set", "test_dataloader.num_workers=0"]) == 0
    check_submission(out, unlabelled_root)

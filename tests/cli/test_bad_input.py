"""What users get wrong or find damaged: one message with path or key and remedy, and the right exit code."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from perception.checkpoint import save_checkpoint
from perception.cli.main import main
from perception.engine import PerceptionRunner, work_dir
from perception.structures import CLASS_NAMES


def fail(words, capsys, code: int) -> str:
    """Run a command that must fail with this code, and return its message: the only one, without a traceback."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == code
    text = capsys.readouterr().err
    assert "Traceback" not in text
    assert text.count("perception: error: ") == 1
    return text.split("perception: error: ")[1]


@pytest.fixture
def world(synthetic_root, tmp_path) -> Path:
    """A copy of the world that a test may damage."""
    return Path(shutil.copytree(synthetic_root, tmp_path / "world"))


@pytest.fixture
def weights(tmp_path) -> Path:
    """A step folder whose model told eleven classes apart."""
    state = {"class_names": [*CLASS_NAMES, "tram"], "task_names": ["cls", "box", "velocity", "seg"]}
    return save_checkpoint(
        tmp_path / "other" / "checkpoints",
        step=1,
        model_state={},
        optimizer_state={},
        state=state,
        rng_states={0: {}},
    )


def test_missing_image(world, index, options, tmp_path, capsys):
    """Known before training: `data prepare` names it. Lost later: the run names it and its sample."""
    data = json.loads((index / "v1.0-mini_mini_train.json").read_text())["data_list"]
    name = data[0]["images"]["CAM_BACK"]["img_path"]
    (world / name).unlink()
    message = fail(["data", "prepare", world, "--out", tmp_path / "index"], capsys, 3)
    assert name in message
    words = [*options, f"train_dataloader.dataset.data_root={world}", "train_dataloader.num_workers=1"]
    message = fail(["train", "bevformer_nano", "--work-dir", tmp_path / "run", *words], capsys, 3)
    assert name in message
    assert data[0]["token"] in message


def test_unreadable_image(world, index, tmp_path, capsys):
    data = json.loads((index / "v1.0-mini_mini_val.json").read_text())["data_list"]
    name = data[1]["images"]["CAM_FRONT"]["img_path"]
    (world / name).write_bytes((world / name).read_bytes()[:300])
    source = index / "v1.0-mini_mini_val.json"
    words = ["browse", source, "--data-root", world, "--out", tmp_path, "--index", "1"]
    message = fail(words, capsys, 3)
    assert name in message
    assert data[1]["token"] in message
    assert main(["data", "verify", str(world)]) == 3
    assert name in capsys.readouterr().out


@pytest.mark.parametrize("content", ["[]", ""])
def test_empty_annotation_table(world, tmp_path, capsys, content):
    (world / "v1.0-mini" / "sample_annotation.json").write_text(content)
    message = fail(["data", "prepare", world, "--out", tmp_path / "index"], capsys, 3)
    assert "sample_annotation" in message
    assert not (tmp_path / "index").exists() or not list((tmp_path / "index").iterdir())


@pytest.mark.parametrize(
    ("key", "right"),
    [
        ("modle", "model"),
        ("model.box_haed", "box_head"),
        ("model.box_head.num_qeury", "num_query"),
        ("optim_wrapper.optimizer.weight_dcay", "weight_decay"),
        ("train_dataloader.dataset.pipeline.1.siz", "size"),
    ],
)
def test_misspelt_key_at_any_level(options, tmp_path, capsys, key, right):
    message = fail(
        ["train", "bevformer_nano", "--work-dir", tmp_path / "run", *options, f"{key}=1"], capsys, 2
    )
    assert key in message
    assert f"Did you mean '{right}'?" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("verb", ["train", "check"])
@pytest.mark.parametrize(
    ("balancer", "message"),
    [
        ("pcgrd", "Did you mean 'pcgrad'"),
        ('{"name": "wpcgrad", "priority": {"name": "dtp", "gama": 2}}', "Did you mean 'gamma'"),
        ('{"name": "amtl"}', "potentials"),
        (
            '{"name": "connection_strength", "groups": {"det": ["cls", "box"], "seg": ["seg"]}}',
            "['velocity']",
        ),
        ('{"name": "rotograd", "dcay": 0.9}', "Did you mean 'decay'"),
        ('{"name": "connection_strength", "trunk": ["img_backbon"]}', "has no submodules ['img_backbon']"),
    ],
)
def test_a_balancer_that_cannot_be_built(options, tmp_path, capsys, verb, balancer, message):
    words = [verb, "bevformer_nano", *options, f"optim_wrapper.balancer={balancer}"]
    if verb == "train":
        words[2:2] = ["--work-dir", tmp_path / "run"]
    text = fail(words, capsys, 2)
    assert "optim_wrapper.balancer: " in text
    assert message in text
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("verb", ["train", "test"])
def test_class_list_differs_from_the_checkpoints(options, weights, tmp_path, capsys, verb):
    words = [verb, "bevformer_nano", "--work-dir", tmp_path / "run"]
    source = [f"load_from={weights}"] if verb == "train" else ["--checkpoint", weights]
    message = fail([*words, *options, *source], capsys, 4)
    assert "the classes differ" in message
    assert "only in the checkpoint ['tram']" in message
    assert "train anew" in message
    assert str(weights) in message


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            "model.box_head.num_classes=3",
            ["tells 3 classes apart", "train_dataloader has 10", "traffic_cone"],
        ),
        (
            f"val_dataloader.dataset.class_names={json.dumps([*reversed(CLASS_NAMES)])}",
            ["another order", "'traffic_cone' in val_dataloader", "'car' in train_dataloader"],
        ),
        ("val_dataloader.dataset.pipeline.-2.filled=true", ["only in val_dataloader ['drivable_area']"]),
        (
            f"val_evaluator.0.class_names={json.dumps([*reversed(CLASS_NAMES)])}",
            ["classes of NuScenesDetectionMetric", "another order", "'traffic_cone' in the metric"],
        ),
        ('val_evaluator.1.class_names=["background", "road"]', ["map_classes of BEVSegMetric", "['road']"]),
    ],
)
def test_classes_that_do_not_agree(options, tmp_path, capsys, change, expected):
    """Labels are positions in a list: without this check one class would be scored as another."""
    run = tmp_path / "run"
    without_data = ["check", "bevformer_nano", "--no-data", "--set", change]
    for command in (without_data, ["train", "bevformer_nano", "--work-dir", run, *options, change]):
        message = fail(command, capsys, 2)
        assert all(text in message for text in expected)
    assert not (run / "checkpoints").exists()


def test_root_without_nuscenes(tmp_path, capsys):
    for verb in ("prepare", "verify"):
        message = fail(["data", verb, tmp_path], capsys, 3)
        assert str(tmp_path) in message
        assert "v1.0-" in message


def test_a_part_of_the_download(world, tmp_path, capsys):
    """Some archives of the full set: the splits whose scenes are whole can be prepared alone."""
    next((world / "samples" / "CAM_BACK").glob("*scene0061*")).unlink()
    (world / "v1.0-mini" / "splits.json").write_text(json.dumps({"mine": ["scene-0103"]}))
    words = ["data", "prepare", str(world), "--out", str(tmp_path / "index")]
    assert "scene0061" in fail(words, capsys, 3)
    assert main([*words, "--splits", "mine"]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "index" / "v1.0-mini_mine.json")]
    assert "Did you mean 'mine'?" in fail([*words, "--splits", "mne"], capsys, 3)


def test_metric_of_another_split(options, tmp_path, capsys):
    words = ["test", "bevformer_nano", "--untrained", "--work-dir", tmp_path / "run", *options]
    message = fail([*words, "test_evaluator.0.eval_set=mini_train"], capsys, 2)
    assert "split 'mini_val'" in message
    assert "eval_set" in message


def test_full_disk_during_a_save(options, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    real = os.fsync

    def full(descriptor: int) -> None:
        if "checkpoints" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    small = [
        "train_dataloader.dataset.indices=2",
        "val_dataloader=null",
        "val_cfg=null",
        "val_evaluator=null",
    ]
    message = fail(["train", "bevformer_nano", "--work-dir", run, *options, *small], capsys, 4)
    assert "No space left on device" in message
    assert "Free space there" in message
    assert str(run / "checkpoints") in message
    assert not list((run / "checkpoints").glob("step_*"))


def test_two_runs_on_one_work_directory(options, tmp_path, capsys):
    script = (
        "import runpy, sys, time\n"
        "with runpy.run_path(sys.argv[1])['WorkDirLock'](sys.argv[2]):\n"
        "    print('held', flush=True); time.sleep(120)"
    )
    command = [sys.executable, "-c", script, work_dir.__file__, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            message = fail(["train", "bevformer_nano", "--work-dir", tmp_path, *options], capsys, 2)
        finally:
            holder.kill()
    assert f"in use by process {holder.pid}" in message
    assert str(tmp_path) in message


@pytest.mark.parametrize(
    ("error", "code"), [(ValueError("x must be 1"), 1), (FloatingPointError("step 9: non-finite loss"), 1)]
)
def test_errors_of_the_engine_are_one_line(options, tmp_path, capsys, monkeypatch, error, code):
    def train(self: PerceptionRunner) -> None:
        raise error

    monkeypatch.setattr(PerceptionRunner, "train", train)
    words = ["train", "bevformer_nano", "--work-dir", tmp_path / "run", *options]
    assert fail(words, capsys, code) == f"{error}\n"
    monkeypatch.setenv("PERCEPTION_DEBUG", "1")
    assert main([str(word) for word in words]) == code
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--seed", "-1"], "from 0 to 2147483647, found '-1'"),
        (["--scenes", "11"], "from 1 to 10, found '11'"),
        (["--samples-per-scene", "1"], "from 2 to 40, found '1'"),
    ],
)
def test_world_out_of_range(words, expected, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["data", "synthesize", "--out", str(tmp_path / "world"), *words])
    assert stop.value.code == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "world").exists()

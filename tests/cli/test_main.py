"""Command line: help, exit codes, and one clear message for each kind of mistake."""

import json
import os
import subprocess
import sys
import time

import pytest

from perception.checkpoint import CheckpointError
from perception.cli.main import build_parser, explain, main
from perception.config import ConfigError
from perception.utils import DataError
from tests.cli.verbs import SUBVERBS, VERBS

LEAVES = [(verb, *rest) for verb in VERBS for rest in ([(sub,) for sub in SUBVERBS.get(verb, ())] or [()])]


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys\nfrom perception.cli.main import build_parser\nbuild_parser().format_help()\n"
        "print(sorted({'torch', 'mmengine', 'numpy'} & set(sys.modules)))"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert time.monotonic() - start < 5


def test_help_lists_every_verb():
    text = build_parser().format_help()
    for verb in VERBS:
        assert verb in text
    assert "exit codes" in text


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_help_has_examples_and_exit_codes(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*words, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"perception {' '.join(words)}" in text.split("examples:")[1]
    assert "exit codes:" in text
    assert "143" in text


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["traim", "x"], "Did you mean 'train'?"),
        (["data", "synthesise", "--out", "x"], "Did you mean 'synthesize'?"),
        (["train", "x", "--work-dri", "y"], "Did you mean '--work-dir'?"),
        (["test", "x", "--baseline", "constnat"], "Did you mean 'constant'?"),
    ],
)
def test_misspelt_word_gives_a_hint_and_2(words, hint, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("c"), 2),
        (DataError("d", path="x"), 3),
        (CheckpointError("k", path="x"), 4),
        (FloatingPointError("nan"), 1),
        (OSError(28, "No space left on device", "/x"), 1),
    ],
)
def test_errors_and_exit_codes(error, code):
    found, message = explain(error)
    assert found == code
    assert message is not None


def test_unknown_error_keeps_its_traceback():
    assert explain(RuntimeError("what?")) == (1, None)


def test_worker_traceback_is_reduced_to_the_message():
    text = "Caught DataError in DataLoader worker process 0.\nOriginal Traceback ...\nx.DataError: no image [x.jpg]\n"
    assert explain(DataError(text)) == (3, "no image [x.jpg]")


def run(words, capsys, code):
    assert main(words) == code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured


def test_unknown_config(capsys):
    assert "Did you mean 'bevformer_nano'?" in run(["train", "bevformer_nanno"], capsys, 2).err


def test_misspelt_key(capsys):
    found = run(["check", "bevformer_nano", "--no-data", "--set", "train_cfg.max_epoch=1"], capsys, 2).err
    assert "train_cfg.max_epoch" in found
    assert "Did you mean 'max_epochs'?" in found


def test_misspelt_key_in_a_file_is_told_before_data_is_looked_for(capsys, tmp_path):
    path = tmp_path / "mine.json"
    main(["config", "show", "bevformer_nano"])
    path.write_text(capsys.readouterr().out.replace('"num_query"', '"num_qeury"'))
    found = run(["train", str(path), "--work-dir", str(tmp_path / "run")], capsys, 2).err
    assert "model.box_head.num_qeury" in found
    assert "Did you mean 'num_query'?" in found
    assert not (tmp_path / "run").exists()


def test_debug_shows_the_traceback(capsys, monkeypatch):
    assert main(["train", "bevformer_nanno", "--verbose"]) == 2
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("PERCEPTION_DEBUG", "1")
    assert main(["train", "bevformer_nanno"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["prepare", "verify"])
def test_root_without_nuscenes(verb, capsys, tmp_path):
    assert str(tmp_path) in run(["data", verb, str(tmp_path)], capsys, 3).err


def test_training_without_data(capsys, tmp_path):
    root = tmp_path / "nuscenes-synthetic"
    options = [f"{loader}_dataloader.dataset.data_root={root}" for loader in ("train", "val", "test")]
    words = ["train", "bevformer_nano", "--work-dir", str(tmp_path / "run"), "--set", *options]
    assert f"perception data synthesize --out {root}" in run(words, capsys, 3).err
    root.mkdir()
    assert "holds no nuScenes" in run(words, capsys, 3).err
    assert not (tmp_path / "run").exists()


def test_config_without_weights(capsys):
    assert "--untrained" in run(["test", "bevformer_nano"], capsys, 2).err
    assert "--checkpoint" in run(["predict", "bevformer_nano", "--data", "x.json"], capsys, 2).err
    assert "Did you mean 'bevformer_nano'?" in run(["test", "bevformer_nan"], capsys, 2).err


def test_folder_that_is_no_run(capsys, tmp_path):
    assert "no run folder" in run(["test", str(tmp_path)], capsys, 2).err
    assert "no run folder" in run(["report", str(tmp_path)], capsys, 2).err


def test_config_ls_show_diff(capsys):
    lines = run(["config", "ls"], capsys, 0).out.splitlines()
    assert any(line.startswith("bevformer_nano_det ") for line in lines)
    assert len({line.rindex(" ") for line in lines}) == 1  # columns, whatever the longest name
    shown = json.loads(run(["config", "show", "bevformer_nano", "--key", "train_cfg"], capsys, 0).out)
    assert shown["by_epoch"] is True
    assert "model.seg_head" in run(["config", "diff", "bevformer_nano", "bevformer_nano_det"], capsys, 0).out
    assert run(["config", "diff", "bevformer_nano", "bevformer_nano"], capsys, 0).out == ""
    assert (
        "Did you mean 'train_cfg'?"
        in run(["config", "show", "bevformer_nano", "--key", "train_cgf"], capsys, 2).err
    )


def test_doctor(capsys):
    main(["doctor", "--json"])
    facts = json.loads(capsys.readouterr().out)["facts"]
    assert facts["mmcv ops"] in {"compiled", "fallback in torch (perception.ops)"}
    assert facts["CPU cores"] == len(os.sched_getaffinity(0))
    assert "works" in facts["OpenCV"]

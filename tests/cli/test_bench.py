"""`perception bench model` and `bench data` on the small world."""

import json
import shutil
from pathlib import Path

import pytest

from perception.cli.main import main
from tests.cli.test_bad_input import fail

QUICK = ["--steps", "1", "--warmup", "1"]


def test_bench_data(options, capsys):
    assert main(["bench", "data", "bevformer_nano", "--items", "2", "--json", *options]) == 0
    assert json.loads(capsys.readouterr().out)["num_items"] == 2


@pytest.mark.parametrize("mode", ["train", "predict"])
def test_bench_model(options, mode, tmp_path, capsys):
    out = tmp_path / "results" / "nano.json"
    words = ["bench", "model", "bevformer_nano", "--mode", mode, *QUICK, "--batch-size", "1"]
    assert main([*words, "--json", "--out", str(out), *options]) == 0
    page = out.with_suffix(".md").read_text(encoding="utf-8")
    result = json.loads(out.read_text(encoding="utf-8"))
    assert (result["mode"], result["config"], result["batch_size"]) == (mode, "bevformer_nano", 1)
    assert result["samples_per_second"] > 0
    assert result["memory"]["peak_mib"] > 100
    assert result["data"]["ms_per_item"] > 0
    assert ("| backward | 1 |" in page) == (mode == "train")
    assert json.loads(capsys.readouterr().out) == result


def test_a_root_of_another_version(synthetic_root, index, tmp_path, capsys):
    """So a config for all of nuScenes runs on the synthetic world, without knowing the names of its files."""
    root = tmp_path / "world"
    (root / "perception_index").mkdir(parents=True)
    for path in Path(synthetic_root).iterdir():
        if path.name != "perception_index":
            (root / path.name).symlink_to(path)
    shutil.copy(index / "v1.0-mini_mini_train.json", root / "perception_index" / "v1.0-tiny_train.json")
    changes = ["train_dataloader.num_workers=0", "train_dataloader.dataset.pipeline.-2.cache_dir=null"]
    words = ["bench", "model", "bevformer_nano", "--data-root", str(root), *QUICK, "--set", *changes]
    assert main(words) == 0
    printed = capsys.readouterr()
    assert "train_dataloader.dataset.ann_file=perception_index/v1.0-tiny_train.json" in printed.err
    assert "samples/s" in printed.out


def test_what_cannot_be_measured(options, tmp_path, capsys):
    words = ["bench", "model", "bevformer_nano"]
    message = fail([*words, "--batch-size", "100", *options], capsys, 2)
    assert "the batch size is 100" in message
    assert "--batch-size 4 or less" in message
    assert "does not exist" in fail([*words, "--data-root", tmp_path / "no"], capsys, 3)
    without = [
        f"{name}_{part}=null" for name in ("val", "test") for part in ("dataloader", "evaluator", "cfg")
    ]
    message = fail([*words, "--mode", "predict", *options, *without], capsys, 1)
    assert "has neither test_dataloader nor val_dataloader" in message
    without = [f"{key}=null" for key in ("train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler")]
    assert "no train_dataloader" in fail([*words, "--set", *without], capsys, 2)
    with pytest.raises(SystemExit) as stop:
        main([*words, "--mode", "trian"])
    assert stop.value.code == 2
    assert "invalid choice: 'trian'" in capsys.readouterr().err

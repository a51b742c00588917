"""BDD100K from the command line: `data prepare` and `data verify`, whole and damaged."""

import json
from pathlib import Path

import pytest

from perception.cli.main import main
from perception.config import missing_data
from tests.cli.test_bad_input import fail
from tests.datasets.bdd100k_world import write_mask, write_root

MASK = "labels/sem_seg/masks/train/train-seg-1.png"


@pytest.fixture
def root(tmp_path) -> Path:
    return write_root(tmp_path / "bdd100k")


@pytest.mark.parametrize("words", [[], ["--format", "bdd100k"], ["--splits", "train", "val"]])
def test_the_format_is_found_by_the_folders(root, words, capsys):
    assert main(["data", "prepare", str(root), *words]) == 0
    paths = [root / "perception_index" / f"bdd100k_{split}.json" for split in ("train", "val")]
    assert capsys.readouterr().out.split() == [str(path) for path in paths]
    assert main(["data", "verify", str(root)]) == 0
    assert "no defect found" in capsys.readouterr().out


def test_a_defect_is_named_and_may_be_left_to_training(root, tmp_path, capsys):
    write_mask(root / MASK, (0, 20))
    message = fail(["data", "prepare", root], capsys, 3)
    assert "frame train-seg-1.jpg" in message
    assert str(root / MASK) in message
    assert main(["data", "verify", str(root)]) == 3
    assert "1 defects" in capsys.readouterr().out
    assert (
        main(["data", "prepare", str(root), "--on-bad-sample", "skip", "--out", str(tmp_path / "out")]) == 0
    )
    assert (tmp_path / "out" / "bdd100k_train.json").is_file()


def test_options_of_the_other_format_are_refused(root, tmp_path, capsys):
    assert "--version, --cache" in fail(
        ["data", "prepare", root, "--version", "v1.0-mini", "--cache", "64x36"], capsys, 2
    )
    assert "--version" in fail(["data", "verify", root, "--version", "v1.0-mini"], capsys, 2)
    message = fail(["data", "prepare", tmp_path, "--on-bad-sample", "skip"], capsys, 2)
    assert "only for BDD100K" in message


def test_training_is_told_what_to_do_with_defects(tmp_path, capsys):
    """The option is the data set's `on_error`: a stream, which nothing may be left out of, refuses it."""
    message = fail(["train", "bevformer_nano_stream", "--on-bad-sample", "skip"], capsys, 2)
    assert "train_dataloader.dataset.on_error is 'skip'" in message
    words = ["--on-bad-sample", "strict", "--data-root", tmp_path / "no"]
    message = fail(["train", "bevformer_nano_stream", *words], capsys, 3)
    assert "on_error" not in message


def test_bench_data_counts_images_per_core(root, capsys):
    assert main(["data", "prepare", str(root)]) == 0
    capsys.readouterr()
    assert main(["bench", "data", "fcos_nano", "--data-root", str(root), "--items", "3", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["num_items"] == 3
    assert result["images_per_cpu_s"] > 0
    assert {key for key in result if key.startswith("num_items/")} == {
        "num_items/det",
        "num_items/seg",
        "num_items/det+seg",
    }


@pytest.mark.slow
def test_training_goes_on_without_a_defective_frame(root, tmp_path, capsys):
    write_mask(root / MASK, (0, 20))
    words = ["train", "fcos_nano", "--data-root", str(root), "--work-dir", str(tmp_path / "run"), "--dry-run"]
    changes = [
        "train_dataloader.num_workers=0",
        "val_dataloader.num_workers=0",
        "train_dataloader.batch_size=10",
    ]
    assert main(["data", "prepare", str(root), "--on-bad-sample", "skip"]) == 0
    message = fail([*words, "--set", *changes], capsys, 3)
    assert str(root / MASK) in message
    assert "--on-bad-sample skip" in message
    assert main([*words, "--on-bad-sample", "skip", "--set", *changes]) == 0
    assert "dry run passed" in capsys.readouterr().out


def test_what_a_config_lacks_is_told(root, tmp_path):
    dataset = {
        "type": "perception.datasets.BDD100KDataset",
        "data_root": str(tmp_path / "no"),
        "ann_file": "perception_index/bdd100k_train.json",
    }

    def lacking(**options) -> list[str]:
        return missing_data({"train_dataloader": {"dataset": {**dataset, **options}}})

    assert f"ln -s /your/bdd100k {tmp_path / 'no'}" in lacking()[0]
    assert "--format bdd100k --out" in lacking(data_root=str(tmp_path / "bdd100k-synthetic"))[0]
    assert "holds no BDD100K" in lacking(data_root=str(tmp_path))[0]
    (problem,) = lacking(data_root=str(root))
    assert problem.endswith(f"Make it by perception data prepare {root}")
    main(["data", "prepare", str(root)])
    assert lacking(data_root=str(root)) == []
    (problem,) = lacking(data_root=str(root), pseudo_labels=["work_dirs/none"])
    assert "The pseudo labels work_dirs/none do not exist" in problem

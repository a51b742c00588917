"""One root for all data sets and metrics of a config."""

import json

import pytest
from mmengine.config import Config

from perception.cli.main import main
from perception.config import ConfigError, find_config, fit_to_root, load_config, with_data_root


def roots(value) -> list[str]:
    if isinstance(value, dict):
        own = [value["data_root"]] if "data_root" in value else []
        return own + [root for inner in value.values() for root in roots(inner)]
    return [root for inner in value for root in roots(inner)] if isinstance(value, list) else []


@pytest.mark.parametrize("name", ["bevformer_nano", "bevformer_tiny", "bevformer_tiny_mini"])
def test_every_place_is_set_and_the_config_is_not(name, capsys):
    cfg = load_config(name)
    before = roots(json.loads(json.dumps(cfg._cfg_dict, default=str)))
    changed = roots(json.loads(json.dumps(with_data_root(cfg, "/x y")._cfg_dict, default=str)))
    assert changed == ["/x y"] * len(before)
    assert len(before) == 5
    assert roots(json.loads(json.dumps(cfg._cfg_dict, default=str))) == before
    assert main(["config", "show", name, "--data-root", "/x y"]) == 0
    assert roots(json.loads(capsys.readouterr().out)) == changed


def test_set_goes_before_the_root(capsys):
    words = [
        "config",
        "show",
        "bevformer_nano",
        "--data-root",
        "a",
        "--key",
        "train_dataloader.dataset.data_root",
    ]
    assert main([*words, "--set", "train_dataloader.dataset.data_root=b"]) == 0
    assert json.loads(capsys.readouterr().out) == "b"


def test_a_missing_root_is_named_by_the_option(tmp_path, capsys):
    assert main(["check", "bevformer_nano", "--data-root", str(tmp_path / "no")]) == 3
    assert str(tmp_path / "no") in capsys.readouterr().err


def test_a_config_without_data_is_refused():
    with pytest.raises(ConfigError, match="no data set and no metric"):
        with_data_root(Config({"model": {}}), "a")


def test_tiny_stays_the_one_on_trainval():
    assert find_config("bevformer_tiny").name == "bevformer_tiny_r50_det-seg_8xb1_24e_nuscenes.py"
    assert find_config("bevformer_tiny_mini").name.endswith("_nuscenes-mini.py")


@pytest.mark.parametrize(
    ("files", "loader", "expected"),
    [
        (
            ["v1.0-mini_mini_train.json", "v1.0-mini_mini_val.json"],
            "train_dataloader",
            ["v1.0-mini_mini_train"],
        ),
        (["v1.0-mini_mini_train.json", "v1.0-mini_mini_val.json"], "test_dataloader", ["v1.0-mini_mini_val"]),
        (
            ["v1.0-mini_mini_train.json", "v1.0-trainval_train.json"],
            "train_dataloader",
            [],
        ),  # its own is there
        (["v1.0-mini_mini_train.json", "v1.0-test_train.json"], "train_dataloader", []),  # two to choose from
        (["v1.0-mini_mini_val.json"], "train_dataloader", []),
        ([], "train_dataloader", []),
    ],
)
def test_another_version_in_the_root(tmp_path, files, loader, expected):
    folder = tmp_path / "perception_index"
    folder.mkdir()
    for name in files:
        (folder / name).touch()
    found = fit_to_root(with_data_root(load_config("bevformer_small"), tmp_path), loader)
    versions = ["test_evaluator.0.version=v1.0-mini"] if loader.startswith("test") else []
    indexes = [f"{loader}.dataset.ann_file=perception_index/{name}.json" for name in expected]
    assert found == (indexes + versions if expected else [])
    load_config("bevformer_small", found)

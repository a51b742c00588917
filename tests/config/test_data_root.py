"""One root for all data sets and metrics of a config."""

import json

import pytest
from mmengine.config import Config

from perception.cli.main import main
from perception.config import ConfigError, find_config, load_config, with_data_root


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

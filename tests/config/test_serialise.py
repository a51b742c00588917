"""Writing configs down and loading them from text; fault F13."""

import json

import pytest
import yaml

from perception.config import (
    ALLOWED_PREFIXES,
    ConfigError,
    config_from_json,
    config_hash,
    dump_json,
    list_configs,
    load_config,
)

SHORT_NAMES = [config.short for config in list_configs()]


@pytest.mark.parametrize("name", SHORT_NAMES)
def test_round_trip(name):
    dumped = dump_json(load_config(name))
    again = config_from_json(json.loads(json.dumps(dumped)))
    assert dump_json(again) == dumped
    assert config_hash(again) == config_hash(dumped)


def test_types_come_back_as_classes():
    again = config_from_json(dump_json(load_config("bevformer_nano")))
    assert again.model.type is load_config("bevformer_nano").model.type
    assert again.model.img_backbone.norm_cfg.type == "BN"


def test_run_folder_is_a_config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(dump_json(load_config("bevformer_nano"))))
    assert dump_json(load_config(tmp_path)) == dump_json(load_config("bevformer_nano"))


def test_hash_tells_values_apart():
    assert config_hash({"lr": 1}) != config_hash({"lr": 2})


def test_value_without_json_form():
    with pytest.raises(ConfigError, match=r"a\.b: nan"):
        dump_json({"a": {"b": float("nan")}})
    with pytest.raises(ConfigError, match=r"a\.0: .*object"):
        dump_json({"a": [object()]})


ATTACKS = [
    "os.system",
    "posix.system",
    "subprocess.run",
    "subprocess.Popen",
    "builtins.eval",
    "builtins.__import__",
    "importlib.import_module",
    "torch.load",
    "torch.hub.load",
    "perception.cli.main.os.system",
    "mmengine.runner.runner.os.system",
    "mmengine.config.config.os",
    "mmengine.utils.import_modules_from_strings",
    "mmdet.apis.inference.torch.load",
    "torch.nn.modules.module.torch.load",
    "torch.nn.functional.relu",
    "__import__",
    "eval",
]


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
@pytest.mark.parametrize("name", ATTACKS)
def test_named_code_is_refused_and_not_run(tmp_path, name, suffix):
    marker = tmp_path / "marker"
    data = {"model": {"type": name, "command": f"touch {marker}", "args": [f"touch {marker}"]}}
    path = tmp_path / f"config{suffix}"
    path.write_text(json.dumps(data) if suffix == ".json" else yaml.safe_dump(data))
    with pytest.raises(ConfigError, match=r"model\.type") as error:
        load_config(path)
    if not name.startswith(ALLOWED_PREFIXES) and "." in name:
        assert all(prefix in str(error.value) for prefix in ALLOWED_PREFIXES)
    assert not marker.exists()


def test_all_refused_types_are_told_before_any_is_imported():
    with pytest.raises(ConfigError) as error:
        config_from_json({"a": {"type": "os.system"}, "b": [{"type": "subprocess.run"}], "c": {"type": 3}})
    assert [problem.split(":")[0] for problem in error.value.problems] == ["a.type", "b.0.type", "c.type"]


def test_yaml_tags_are_refused(tmp_path):
    marker = tmp_path / "marker"
    path = tmp_path / "c.yaml"
    path.write_text(f"model: !!python/object/apply:os.system ['touch {marker}']\n")
    with pytest.raises(ConfigError, match="cannot be read as YAML"):
        load_config(path)
    assert not marker.exists()


def test_custom_imports_are_refused():
    with pytest.raises(ConfigError, match="custom_imports"):
        config_from_json({"custom_imports": {"imports": ["os"]}})


def test_registered_and_importable_types_are_taken():
    cfg = config_from_json(
        {
            "a": {"type": "torch.optim.AdamW"},
            "b": {"type": "mmengine.dataset.pseudo_collate"},
            "c": {"type": "ReLU"},
            "d": {"type": "perception.models.BEVFormer"},
        }
    )
    assert cfg.a.type.__name__ == "AdamW"
    assert cfg.b.type.__name__ == "pseudo_collate"


def test_misspelt_type_gets_a_hint():
    with pytest.raises(ConfigError, match="Did you mean 'AdamW'"):
        config_from_json({"optimizer": {"type": "torch.optim.AdamWW"}})


def test_broken_json_is_named(tmp_path):
    path = tmp_path / "c.json"
    path.write_text("{")
    with pytest.raises(ConfigError, match="cannot be read as JSON"):
        load_config(path)

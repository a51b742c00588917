"""Checks of whole configs; fault F14: a typo at each level of each shipped config, and in ``--set``."""

import copy
import random
import time

import pytest

from perception.config import (
    ConfigError,
    check_config,
    config_problems,
    list_configs,
    load_config,
    missing_data,
)
from perception.config.load import copy_plain
from perception.config.streams import stream_problems
from perception.config.walk import walk_config

SHORT_NAMES = [config.short for config in list_configs()]
FREE = {"optim_wrapper.paramwise_cfg.custom_keys"}
"""Dicts whose keys are free by design: here the parameter names that a rate is for."""

BALANCER = "optim_wrapper.balancer"
"""What lies here is checked by `perception.engine.check_balancing`."""


def misspell(word, rng):
    """Swap, drop, double or change one letter."""
    place = rng.randrange(max(1, len(word) - 1))
    kind = rng.choice(("swap", "drop", "double", "change")) if len(word) > 3 else "double"
    if kind == "swap" and word[place] != word[place + 1]:
        return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    if kind == "drop":
        return word[:place] + word[place + 1 :]
    if kind == "change":
        return word[:place] + ("x" if word[place] != "x" else "y") + word[place + 1 :]
    return word[:place] + word[place] + word[place:]


def at(root, path):
    for part in path.split(".") if path else ():
        root = dict.__getitem__(root, part) if isinstance(root, dict) else root[int(part)]
    return root


def typos(name):
    """One (path, key, misspelt key) for each dict of a config that has keys."""
    rng = random.Random(name)
    plain = copy_plain(load_config(name)._cfg_dict)
    for place in walk_config(plain, is_static=True):
        keys = sorted(dict.keys(at(plain, place.path)))
        if place.path in FREE or not keys or place.path.startswith(BALANCER):
            continue
        key = rng.choice(keys)
        wrong = misspell(key, rng)
        if wrong not in keys and wrong not in (place.accepted or ()):
            yield plain, place.path, key, wrong


@pytest.mark.parametrize("name", SHORT_NAMES)
def test_shipped_config_is_right(name):
    check_config(load_config(name))


@pytest.mark.parametrize("name", SHORT_NAMES)
def test_typo_at_every_level_is_rejected_with_the_right_word(name):
    num_typos = num_right = 0
    for plain, path, key, wrong in typos(name):
        broken = copy.copy(copy_plain(plain))
        node = at(broken, path)
        node[wrong] = dict.pop(node, key)
        start = time.monotonic()
        problems = config_problems(broken)
        assert time.monotonic() - start < 5
        where = f"{path}.{wrong}" if path else wrong
        about = [text for text in problems if text.startswith((f"{where}:", f"{path}:"))]
        assert about, f"{where} (for {key}) passed: {problems}"
        num_typos += 1
        num_right += any(f"Did you mean '{key}'" in text for text in about)
    assert num_typos >= 30
    assert num_right >= 0.9 * num_typos


@pytest.mark.parametrize("name", SHORT_NAMES)
def test_typo_in_set_is_rejected_with_the_right_word(name):
    num_typos = num_right = 0
    for _, path, key, wrong in typos(name):
        with pytest.raises(ConfigError) as error:
            load_config(name, [f"{path}.{wrong}=1" if path else f"{wrong}=1"])
        num_typos += 1
        num_right += f"Did you mean '{key}'" in str(error.value)
    assert num_right >= 0.9 * num_typos


def broken(name="bevformer_nano", **changes):
    plain = copy_plain(load_config(name)._cfg_dict)
    for path, value in changes.items():
        *parents, key = path.split("__")
        at(plain, ".".join(parents))[key] = value
    return config_problems(plain)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model__bev_encoder__bev_h": 41}, "they must be equal"),
        ({"model__box_head__embed_dims": 128}, "they must be equal"),
        (
            {"model__box_head__num_classes": 9, "train_dataloader__dataset__class_names": ["car"] * 10},
            "has 10 classes",
        ),
        ({"model__bev_encoder__pc_range": (51.2, -51.2, -5, -51.2, 51.2, 3)}, "min < max"),
        ({"model__seg_head__map_resolution": 0.3}, "map grid"),
        ({"model__seg_head": None}, "the model has no seg_head"),
        ({"train_cfg__max_epochs": "three"}, "expected int or None, found 'three'"),
        ({"model__box_head__reference_init": "random"}, "'learned' or 'grid'"),
        ({"model__box_head__num_query": 1.5}, "expected int, found 1.5"),
    ],
)
def test_contradiction_is_told(changes, expected):
    assert any(expected in problem for problem in broken(**changes))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model__box_head__in_channels": 32}, "they must be equal"),
        ({"model__box_head": None}, "is BoxAPMetric, but the model has no box_head"),
        ({"model__seg_head": None}, "is SemSegMetric, but the model has no seg_head"),
        ({"model__label_weights": {"gt": 0.8, "psuedo": 0.2}}, "Did you mean 'pseudo'"),
        ({"model__box_head__score_treshold": 0.1}, "Did you mean 'score_threshold'"),
    ],
)
def test_contradiction_in_an_image_model_is_told(changes, expected):
    assert any(expected in problem for problem in broken("fcos_nano", **changes))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"train_dataloader__dataset__history": "consecutive"},
            "but train_dataloader.dataset.history is 'consecutive'",
        ),
        (
            {"train_dataloader__sampler": {"type": "EpochSampler"}},
            "but train_dataloader.sampler is EpochSampler; use",
        ),
        (
            {"train_dataloader__sampler": None},
            "but train_dataloader.sampler is EpochSampler (the default); use",
        ),
        (
            {"train_dataloader__dataset__queue_length": 2},
            "queue_length is 2, but a frame of a stream is alone",
        ),
        ({"train_dataloader__dataset__on_error": "skip"}, "would tear its stream"),
        ({"train_dataloader__dataset__test_mode": True}, "but streams are for training"),
        ({"model__use_history": False}, "but streams carry the history from step to step"),
        (
            {"train_dataloader__sampler__batch_size": 4},
            "batch_size is 4, but train_dataloader.batch_size is 1",
        ),
        ({"val_dataloader__sampler": {"type": "StreamSampler"}}, "val_dataloader.sampler is StreamSampler"),
        ({"train_dataloader__sampler__max_frame": 4}, "Did you mean 'max_frames'"),
    ],
)
def test_streams_that_do_not_fit_are_told(changes, expected):
    assert any(expected in problem for problem in broken("bevformer_nano_stream", **changes))


def test_streams_of_another_data_set_are_left_to_the_run():
    loader = {"sampler": {"type": "StreamSampler"}, "dataset": {"type": "Mine"}}
    assert stream_problems({"train_dataloader": loader}) == []
    loader["dataset"]["type"] = "perception.datasets.NuScenesBEVDataset"
    assert "history is 'random'" in stream_problems({"train_dataloader": loader})[0]


def test_patch_queries_without_a_decoder_are_told():
    plain = copy_plain(load_config("bevformer_nano_unified")._cfg_dict)
    assert config_problems(plain) == []
    plain["model"]["box_head"] = None
    assert any("PatchSegHead" in problem for problem in config_problems(plain))


def test_all_problems_come_at_once():
    plain = copy_plain(load_config("bevformer_nano")._cfg_dict)
    plain["train_cfgg"] = {}
    plain["model"]["bev_encoder"]["num_layer"] = 2
    plain["optim_wrapper"]["optimizer"]["learning_rate"] = 2
    with pytest.raises(ConfigError) as error:
        check_config(plain)
    assert len(error.value.problems) == 3


def test_missing_argument_is_told():
    plain = copy_plain(load_config("bevformer_nano")._cfg_dict)
    del plain["train_dataloader"]["dataset"]["ann_file"]
    assert any("needs 'ann_file'" in problem for problem in config_problems(plain))


def test_work_dir_that_is_a_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("")
    plain = copy_plain(load_config("bevformer_nano")._cfg_dict)
    assert any("is a file" in problem for problem in config_problems({**plain, "work_dir": str(path)}))


def data_config(root):
    loader = {"dataset": {"data_root": str(root), "ann_file": "perception_index/v1.0-mini_mini_val.json"}}
    return {"val_dataloader": loader, "test_dataloader": loader}


def test_missing_data_is_told_once_with_the_command(tmp_path):
    root = tmp_path / "nuscenes-synthetic"
    assert [
        f"perception data synthesize --out {root}" in text for text in missing_data(data_config(root))
    ] == [True]
    root.mkdir()
    assert "holds no nuScenes" in missing_data(data_config(root))[0]
    (root / "v1.0-mini").mkdir()
    assert f"perception data prepare {root} --version v1.0-mini" in missing_data(data_config(root))[0]
    (root / "perception_index").mkdir()
    (root / "perception_index" / "v1.0-mini_mini_val.json").write_text("{}")
    assert missing_data(data_config(root)) == []


def test_an_index_of_a_version_that_the_root_lacks(tmp_path):
    for name in ("v1.0-mini", "perception_index"):
        (tmp_path / name).mkdir()
    (tmp_path / "perception_index" / "v1.0-mini_mini_val.json").write_text("{}")
    config = data_config(tmp_path)
    config["val_dataloader"]["dataset"]["ann_file"] = "perception_index/v1.0-trainval_val.json"
    (told,) = missing_data(config)
    assert f"{tmp_path} has no v1.0-trainval to make it from. There are v1.0-mini_mini_val.json" in told
    assert "perception test --index" in told


def test_missing_vector_maps_are_told(tmp_path):
    config = data_config(tmp_path)
    index = tmp_path / "perception_index" / "v1.0-mini_mini_val.json"
    for folder in (tmp_path / "v1.0-mini", index.parent):
        folder.mkdir()
    index.touch()
    step = {"type": "perception.datasets.LoadBEVMap", "grid": {}}
    config["val_dataloader"]["dataset"]["pipeline"] = [{"type": "perception.datasets.PackBEVInputs"}, step]
    (told,) = missing_data(config)
    assert f"{tmp_path}/maps/expansion" in told
    assert "map expansion v1.3" in told
    step["on_missing"] = "skip"
    assert missing_data(config) == []
    config["val_evaluator"] = [{"type": "perception.evaluation.BEVSegMetric"}]
    assert "leave this metric out" in missing_data(config)[0]
    step.update(on_missing="error", map_root=str(tmp_path / "elsewhere"))
    assert "elsewhere/maps/expansion" in missing_data(config)[0]
    (tmp_path / "elsewhere" / "maps" / "expansion").mkdir(parents=True)
    (tmp_path / "elsewhere" / "maps" / "expansion" / "boston-seaport.json").touch()
    assert missing_data(config) == []


def test_a_metrics_missing_tables_and_missing_weights_are_told(tmp_path):
    (tmp_path / "v1.0-mini").mkdir()
    config = {
        "model": {"backbone_weights": str(tmp_path / "r50.pth")},
        "val_evaluator": [{"data_root": str(tmp_path), "version": "v1.0-trainval"}],
    }
    tables, weights = missing_data(config)
    assert str(tmp_path / "v1.0-trainval") in tables
    assert "r50.pth" in weights
    (tmp_path / "r50.pth").touch()
    config["val_evaluator"][0]["version"] = "v1.0-mini"
    assert missing_data(config) == []

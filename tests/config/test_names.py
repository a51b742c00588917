import pytest

from perception.config import ConfigError, find_config, list_configs, parse_config_name


def test_parts_of_a_name():
    name = parse_config_name("bevformer_tiny_r50_det-seg_8xb1_24e_nuscenes.py")
    assert (name.model, name.backbone, name.tasks) == ("bevformer_tiny", "r50", "det-seg")
    assert (name.num_gpus, name.batch_size, name.schedule, name.dataset) == (8, 1, "24e", "nuscenes")
    assert name.short == "bevformer_tiny"


def test_tasks_enter_the_short_name():
    assert (
        parse_config_name("bevformer_nano_r18_det_1xb1_4e_nuscenes-synthetic.py").short
        == "bevformer_nano_det"
    )


def test_every_config_file_follows_the_pattern():
    for config in list_configs():
        folder = config.path.parent
        for path in folder.glob("*.py"):
            assert parse_config_name(path).path == path


def test_short_names_are_unique_and_found():
    names = [config.short for config in list_configs()]
    assert {"bevformer_nano", "bevformer_nano_det", "bevformer_nano_seg", "bevformer_tiny"} <= set(names)
    assert len(names) == len(set(names))
    for config in list_configs():
        assert find_config(config.short) == config.path
        assert find_config(config.path.stem) == config.path


def test_a_model_with_one_config_is_found_by_its_bare_name():
    assert find_config("bevformer_official_tiny") == find_config("bevformer_official_tiny_det")


def test_unknown_short_name_proposes_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'bevformer_nano'"):
        find_config("bevformer_nanno")


def test_missing_file_proposes_a_sibling(tmp_path):
    (tmp_path / "mine.py").write_text("")
    with pytest.raises(ConfigError, match=r"Did you mean .*mine\.py"):
        find_config(tmp_path / "mime.py")


def test_name_that_breaks_the_pattern():
    with pytest.raises(ConfigError, match="does not follow"):
        parse_config_name("my_config.py")

import pytest

from perception.config import ConfigError, load_config
from perception.config.overrides import apply_overrides, parse_override


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=3", 3),
        ("a=1e-3", 1e-3),
        ("a=true", True),
        ("a=True", True),
        ("a=null", None),
        ("a=None", None),
        ("a=[1, 2]", [1, 2]),
        ("a=(1, 2)", (1, 2)),
        ('a={"b": 1}', {"b": 1}),
        ("a='x y'", "x y"),
        ("a=runs/a b", "runs/a b"),
        ("a=x=y", "x=y"),
        ("a=", ""),
    ],
)
def test_values(text, value):
    assert parse_override(text) == ("a", value)


@pytest.mark.parametrize("text", ["a", "=3", "a=[1, 2", "a={'b': print(1)}"])
def test_malformed(text):
    with pytest.raises(ConfigError, match="--set"):
        parse_override(text)


def test_value_is_never_evaluated(tmp_path):
    marker = tmp_path / "marker"
    assert parse_override(f"a=__import__('os').system('touch {marker}')")[1].startswith("__import__")
    assert not marker.exists()


def test_lists_are_indexed():
    root = {"a": [{"b": 1}, {"b": 2}]}
    apply_overrides(root, [("a.1.b", 5), ("a.-2.b", 4)], lambda path: None)
    assert root == {"a": [{"b": 4}, {"b": 5}]}


def test_place_in_a_list_counts_from_the_front_or_the_end():
    root = {"a": [{}, {}]}
    apply_overrides(root, [("a.-1.new", 1)], {"a.1": {"new"}}.get)
    assert root == {"a": [{}, {"new": 1}]}


def test_all_unknown_keys_are_told_at_once():
    with pytest.raises(ConfigError) as error:
        apply_overrides({"abc": {"lr": 1}}, [("abd", 1), ("abc.lrr", 1), ("abc.lr.x", 1)], lambda path: None)
    assert len(error.value.problems) == 3
    assert "Did you mean 'abc'" in error.value.problems[0]
    assert "Did you mean 'lr'" in error.value.problems[1]
    assert "set it as a whole" in error.value.problems[2]


def test_shipped_config_takes_overrides_and_is_not_shared():
    changed = load_config("bevformer_nano", ["train_cfg.max_epochs=1", "optim_wrapper.optimizer.lr=0.5"])
    assert changed.train_cfg.max_epochs == 1
    assert changed.optim_wrapper.optimizer.lr == 0.5
    assert load_config("bevformer_nano").train_cfg.max_epochs != 1


def test_argument_of_the_constructor_that_the_config_leaves_out():
    assert load_config("bevformer_nano", ["model.use_history=false"]).model.use_history is False


def test_watching_is_switched_on_by_one_key():
    assert load_config("bevformer_nano").optim_wrapper.watch == {"gram_interval": 0}
    changed = load_config("bevformer_nano", ["optim_wrapper.watch.gram_interval=100"])
    assert changed.optim_wrapper.watch == {"gram_interval": 100}
    with pytest.raises(ConfigError, match="Did you mean 'gram_interval'"):
        load_config("bevformer_nano", ["optim_wrapper.watch.gram_intervall=100"])


def test_unknown_argument_is_refused():
    with pytest.raises(ConfigError, match="Did you mean 'use_history'"):
        load_config("bevformer_nano", ["model.use_histroy=false"])


def test_type_outside_the_prefixes_is_refused():
    with pytest.raises(ConfigError, match=r"'os\.system' may not be loaded"):
        load_config("bevformer_nano", ["model.type=os.system"])
    with pytest.raises(ConfigError, match=r"model\.box_head\.type: the type 'os\.system'"):
        load_config("bevformer_nano", ['model.box_head={"type": "os.system"}'])

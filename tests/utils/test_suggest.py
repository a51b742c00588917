import pytest

from perception.config import did_you_mean as config_did_you_mean
from perception.utils import closest, did_you_mean, edit_distance


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [("", "", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("ab", "ba", 1), ("lr", "lr_mult", 5)],
)
def test_edit_distance(a, b, expected):
    assert edit_distance(a, b) == edit_distance(b, a) == expected


def test_nearest_option_comes_first():
    assert closest("bev_hh", ["bev_w", "bev_h", "num_query"], count=2) == ["bev_h", "bev_w"]


def test_swapped_letters_are_near():
    assert did_you_mean("intreval", ["interval", "by_epoch"]) == " Did you mean 'interval'?"


def test_nothing_near_gives_no_hint():
    assert did_you_mean("qqqqqq", ["interval", "by_epoch"]) == ""


def test_configs_use_the_same_one():
    assert config_did_you_mean is did_you_mean

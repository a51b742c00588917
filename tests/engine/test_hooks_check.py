"""Values of default hooks and of the strategy, told before a run."""

from typing import Any

import pytest

from perception.cli.main import main
from perception.config import ConfigError
from perception.engine import DDPStrategy, RankWatchHook, check_hooks
from tests.cli.test_bad_input import fail


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (
            {"default_hooks": {"rank_watch": {"timeout_s": 0}}},
            r"default_hooks\.rank_watch: .*timeout_s is 0; allowed: a number of seconds from 1 on",
        ),
        ({"default_hooks": {"rank_watch": {"timeout_s": "120"}}}, "timeout_s is '120'"),
        ({"default_hooks": {"rank_watch": {"timeout_s": 7200}}}, "slow_timeout_s=1800.0 is below"),
        ({"default_hooks": {"rank_watch": {"timeout": 5}}}, "default_hooks.rank_watch: .*timeout"),
        ({"default_hooks": {"checkpoint": {"max_keep": 0}}}, "default_hooks.checkpoint: .*max_keep=0"),
        ({"default_hooks": {"rank_wach": None}}, "default_hooks has unknown names"),
        ({"strategy": {"type": DDPStrategy, "timeout_s": -1}}, "strategy.timeout_s is -1; allowed: a number"),
        (
            {"default_hooks": {"rank_watch": {"timeout_s": 0}}, "strategy": {"timeout_s": None}},
            "The config has 2 problems:",
        ),
    ],
)
def test_bad_values(cfg: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_hooks(cfg)


def test_good_values() -> None:
    check_hooks({})
    check_hooks({"default_hooks": {"rank_watch": None, "checkpoint": {"max_keep": 3}}})
    hooks = {"rank_watch": RankWatchHook(timeout_s=5.0), "balancer": None}
    check_hooks({"default_hooks": hooks, "strategy": {"type": DDPStrategy, "timeout_s": 60}})
    with pytest.raises(ValueError, match="strategy.timeout_s is 0"):
        DDPStrategy(timeout_s=0)


def test_the_command_tells_them(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["check", "bevformer_nano", "--no-data", "--set"]
    for override, expected in (
        ("default_hooks.rank_watch.timeout_s=-5", "timeout_s is -5; allowed: a number of seconds from 1 on"),
        ("default_hooks.rank_watch.timeout_s=soon", "default_hooks.rank_watch.timeout_s"),
        ("optim_wrapper.sketch_size=-1", "sketch_size is -1; allowed: 0 (exact)"),
        ("optim_wrapper.interval=3", "does not compare task gradients"),
    ):
        assert expected in fail([*words, override], capsys, 2)
    assert main([*words, "default_hooks.rank_watch.timeout_s=300", "default_hooks.balancer=null"]) == 0

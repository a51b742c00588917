"""What can be known about a config's default hooks and its strategy before a run."""

from collections.abc import Mapping
from typing import Any

from perception.config import ConfigError
from perception.engine.default_hooks import default_hooks
from perception.engine.seconds import check_seconds
from perception.registry import HOOKS


def check_hooks(cfg: Mapping[str, Any]) -> None:
    """Build the default hooks that a config changes, and look at its strategy's limit of time.

    Args:
        cfg: the config.

    Raises:
        ConfigError: values that a hook or the strategy refuses.
    """
    problems = []
    for name, changes in (cfg.get("default_hooks") or {}).items():
        try:
            for hook in default_hooks({name: changes}):
                if isinstance(hook, Mapping):
                    HOOKS.build(dict(hook))
        except (TypeError, ValueError) as error:
            problems.append(f"default_hooks.{name}: {error}")
    strategy = cfg.get("strategy")
    if isinstance(strategy, Mapping) and "timeout_s" in strategy:
        try:
            check_seconds(strategy["timeout_s"], "strategy.timeout_s")
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(
            f"The config has {len(problems)} problem{'s' if len(problems) > 1 else ''}:", problems=problems
        )

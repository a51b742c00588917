"""What can be known about a config's balancer before a model is built."""

from collections.abc import Mapping
from typing import Any

from perception.balancing import build_balancer
from perception.config import ConfigError
from perception.engine.balanced_backward import check_options


def check_balancing(cfg: Mapping[str, Any]) -> None:
    """Build the balancer of a config and check the options beside it; task names are checked when training starts.

    Args:
        cfg: the config; without `optim_wrapper.balancer` there is nothing to check.

    Raises:
        ConfigError: an unknown name or argument, or options that do not go together.
    """
    wrapper = cfg.get("optim_wrapper") or {}
    spec = wrapper.get("balancer")
    if not isinstance(spec, str | Mapping):
        return
    try:
        balancer = build_balancer(spec)
        watch = wrapper.get("watch") or {}
        check_options(
            balancer,
            wrapper.get("gradient_source", "parameters"),
            wrapper.get("interval", 1),
            watch.get("gram_interval", 0),
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(
            "The config has 1 problem:", problems=[f"optim_wrapper.balancer: {error}"]
        ) from error

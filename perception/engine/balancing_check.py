"""What can be known about a config's balancer before a model is built."""

from collections.abc import Mapping
from typing import Any

from perception.balancing import build_balancer
from perception.config import ConfigError
from perception.engine.balanced_backward import check_options
from perception.engine.task_forwards import prepare_model
from perception.registry import MODELS


def check_balancing(cfg: Mapping[str, Any]) -> None:
    """Build the balancer of a config and check the options beside it; task names are checked when training starts.

    A method that changes the model does so once, so that tasks, groups and layers are checked as well.

    Args:
        cfg: the config; with an `optim_wrapper.balancer` that is an object there is nothing to check.

    Raises:
        ConfigError: an unknown name or argument, options that do not go together, or a model that does not fit.
    """
    wrapper = cfg.get("optim_wrapper") or {}
    spec = wrapper.get("balancer")
    if spec is not None and not isinstance(spec, str | Mapping):
        return
    try:
        balancer = build_balancer(spec)
        watch = wrapper.get("watch") or {}
        check_options(
            balancer,
            wrapper.get("gradient_source", "parameters"),
            wrapper.get("interval", 1),
            watch.get("gram_interval", 0),
            wrapper.get("accumulative_counts", 1),
            wrapper.get("sketch_size", 0),
        )
        if balancer.changes_model:
            prepare_model(balancer, MODELS.build(cfg["model"]))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            "The config has 1 problem:", problems=[f"optim_wrapper.balancer: {error}"]
        ) from error

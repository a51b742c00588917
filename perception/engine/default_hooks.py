"""The hooks that every run has, and how a config changes or leaves out one of them."""

from collections.abc import Mapping
from typing import Any

from perception.engine.hooks import (
    BalancerHook,
    CheckpointHook,
    LogHook,
    RankWatchHook,
    RuntimeInfoHook,
    ScheduleHook,
    SignalHook,
    TensorboardHook,
)


def default_hooks(changes: Mapping[str, Any]) -> list[Any]:
    """Our hooks, or configs of them, in the order in which they are registered.

    Args:
        changes: hook's name → None to leave it out, a dict with arguments (and a `type` to replace it), or a hook.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> len(default_hooks({})) - len(default_hooks({"tensorboard": None}))
        1
    """
    defaults: dict[str, Any] = dict(
        rank_watch=dict(type=RankWatchHook),
        runtime_info=dict(type=RuntimeInfoHook),
        logger=dict(type=LogHook),
        param_scheduler=dict(type=ScheduleHook),
        balancer=dict(type=BalancerHook),
        tensorboard=dict(type=TensorboardHook),
        signals=dict(type=SignalHook),
        checkpoint=dict(type=CheckpointHook),
    )
    unknown = sorted(set(changes) - set(defaults))
    if unknown:
        raise ValueError(
            f"default_hooks has unknown names {unknown}; allowed: {sorted(defaults)}. "
            "Other hooks belong into custom_hooks"
        )
    for name, config in changes.items():
        if config is None:
            del defaults[name]
        elif isinstance(config, dict):
            defaults[name] = {**defaults[name], **config} if "type" not in config else dict(config)
        else:
            defaults[name] = config
    return [*defaults.values()]

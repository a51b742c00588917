"""From a config to a balancer."""

import inspect
from collections.abc import Mapping
from typing import Any

from perception.balancing.balancer import Balancer
from perception.balancing.methods import METHODS, PARTS, PRESETS, Method, balancer_names
from perception.utils import did_you_mean

Spec = str | Mapping[str, Any]
_OPTIONS = ("scales", "convention", "scale_heads")
_NOT_FROM_CONFIGS = ("generator", "num_tasks")


def build_balancer(spec: Spec | None) -> Balancer:
    """Make a balancer.

    Args:
        spec: a name of `balancer_names()`, or names joined by "+" (loss weighting, then stages); or a dict with `name`,
            the method's arguments and `scales`, `convention`, `scale_heads`. Of joined names each takes its arguments
            under its own name. `weighting` (beside a stage) and `priority`, `pacing` are specs themselves. None is the
            plain sum.

    Returns:
        the balancer; `setup` comes next.

    Raises:
        ValueError: an unknown name or argument, with the nearest right one; a missing argument; a wrong order.

    Example:
        >>> build_balancer(dict(name="mclgs+cagrad", pacing=dict(name="ratio", initial=60), convention="sum"))
        MultiTaskBalancer(LossWeighting -> MCLGSWeighting -> TorchJDWeighting, convention='sum')
    """
    name, arguments = _split(spec if spec is not None else "sum", "balancer")
    if name in PRESETS:
        name, preset = PRESETS[name]
        arguments = {**preset, **arguments}
    if name == "sum" and not arguments:
        return Balancer()
    names = [] if name == "sum" else name.split("+")
    for part in names:
        if part not in METHODS:
            raise ValueError(
                f"unknown balancer {part!r}.{did_you_mean(part, balancer_names())} "
                f"Known: {', '.join(balancer_names())}; or some of them joined by '+'"
            )
    if len(set(names)) < len(names):
        raise ValueError(f"balancer {name!r} names a method twice; name each once")
    options = {key: arguments.pop(key) for key in _OPTIONS if key in arguments}
    has_own = names and METHODS[names[0]].kind == "balancer"
    weighting = None if has_own else arguments.pop("weighting", None)
    return _assemble(name, _share_out(name, names, arguments), weighting, options)


def changes_model(spec: Any) -> bool:
    """Whether a balancer of this spec trains another model than the config's, told without loading it.

    Example:
        >>> changes_model("connection_strength"), changes_model("pcgrad"), changes_model(None)
        (True, False, False)
    """
    name = spec.get("name") if isinstance(spec, Mapping) else spec
    method = METHODS.get(name) if isinstance(name, str) else None
    return method is not None and method.changes_model


def _share_out(name: str, names: list[str], arguments: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each method's arguments: those under its name, and loose ones that only it takes."""
    if len(names) == 1:
        return {names[0]: arguments}
    per_part: dict[str, dict[str, Any]] = {part: {} for part in names}
    for key, value in arguments.items():
        if key in names and isinstance(value, Mapping):
            per_part[key].update(value)
            continue
        owners = [part for part in names if key in _allowed(METHODS[part])]
        if len(owners) != 1:
            known = [
                *names,
                *_OPTIONS,
                "weighting",
                *(key for part in names for key in _allowed(METHODS[part])),
            ]
            raise ValueError(
                f"balancer {name!r} has the argument {key!r} = {value!r}, which "
                f"{'several' if owners else 'none'} of its methods takes.{did_you_mean(key, known)} "
                f"Put arguments into a dict under their method's name, one of {names}; for all: {list(_OPTIONS)}"
            )
        per_part[owners[0]][key] = value
    return per_part


def _assemble(
    name: str, per_part: dict[str, dict[str, Any]], weighting: Spec | None, options: dict[str, Any]
) -> Balancer:
    kinds = [METHODS[part].kind for part in per_part]
    if "balancer" in kinds:
        if len(kinds) > 1:
            alone = next(part for part in per_part if METHODS[part].kind == "balancer")
            raise ValueError(
                f"balancer {name!r}: {alone!r} can't be joined by '+'; it takes only a loss weighting beside it: "
                f"dict(name={alone!r}, weighting=...)"
            )
        ((part, arguments),) = per_part.items()
        return _make(METHODS[part], part, {**arguments, **options})
    from perception.balancing.multi_task_balancer import MultiTaskBalancer

    built = [_make(METHODS[part], part, arguments) for part, arguments in per_part.items()]
    weightings = [item for item, kind in zip(built, kinds, strict=True) if kind == "weighting"]
    # A weighting may be named before or after a geometric mean, but not after gradients were combined.
    if weighting is not None:
        weightings.append(_nested("weighting", weighting))
    if len(weightings) > 1:
        raise ValueError(f"balancer {name!r} has {len(weightings)} loss weightings; at most one is allowed")
    stages = [item for item, kind in zip(built, kinds, strict=True) if kind == "stage"]
    return MultiTaskBalancer(weighting=weightings[0] if weightings else None, combination=stages, **options)


def _nested(kind: str, spec: Any) -> Any:
    if not isinstance(spec, str | Mapping):
        return spec
    name, arguments = _split(spec, kind)
    methods = PARTS.get(kind) or {key: method for key, method in METHODS.items() if method.kind == kind}
    if kind == "priority" and name in ("seg_to_vel", "vel_to_seg"):
        name, arguments = "static", {"schedule": name, **arguments}
    if name not in methods:
        raise ValueError(f"unknown {kind} {name!r}.{did_you_mean(name, methods)} Known: {', '.join(methods)}")
    return _make(methods[name], name, arguments)


def _parameters(target: Any) -> dict[str, inspect.Parameter]:
    """A method's arguments; with `**options` those of its class's base too."""
    found = dict(inspect.signature(target).parameters)
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in found.values()):
        found = {key: value for key, value in found.items() if value.kind is not value.VAR_KEYWORD}
        found = {**found, **_parameters(target.__base__)}
    return found


def _allowed(method: Method) -> list[str]:
    return [key for key in _parameters(method.load()) if key not in _NOT_FROM_CONFIGS]


def _make(method: Method, name: str, arguments: Mapping[str, Any]) -> Any:
    target = method.load()
    parameters = _parameters(target)
    nested = dict(method.nested)
    allowed = _allowed(method)
    for key in arguments:
        if key not in allowed:
            raise ValueError(
                f"{name!r} takes no argument {key!r}.{did_you_mean(key, allowed)} "
                f"Allowed: {', '.join(allowed) or 'none'}"
            )
    values = {**dict(method.defaults), **arguments}
    for key in allowed:
        if parameters[key].default is inspect.Parameter.empty and key not in values:
            raise ValueError(f"{name!r} needs the argument {key!r}; add it: dict(name={name!r}, {key}=...)")
    return target(
        **{key: _nested(nested[key], value) if key in nested else value for key, value in values.items()}
    )


def _split(spec: Spec, kind: str) -> tuple[str, dict[str, Any]]:
    if isinstance(spec, str):
        return spec, {}
    if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
        raise ValueError(f"{kind} is {spec!r}; give a name, or a dict(name=..., ...) with arguments")
    return spec["name"], {key: value for key, value in spec.items() if key != "name"}

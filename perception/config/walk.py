"""Visit every dict of a config with the keys that are accepted there."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from perception.config.errors import ConfigError
from perception.config.signature import Signature, scalar_problem, signature_of, typed_dict_keys
from perception.config.slots import LAYER_CLASSES, NAMED_CHILDREN, SLOTS, Slot
from perception.config.static_signature import static_signature
from perception.config.suggest import closest, did_you_mean
from perception.config.types import resolve_type, type_name

_BUILDER_KEYS = frozenset({"type", "_scope_"})


@dataclass(frozen=True)
class Place:
    """A dict in a config.

    Attributes:
        path: dotted path, "" for the top.
        owner: what is built from it, for messages.
        accepted: allowed keys, None where any key is.
        problems: what is wrong in this dict itself.
    """

    path: str
    owner: str
    accepted: frozenset[str] | None
    problems: tuple[str, ...]


def walk_config(root: Mapping[str, Any], *, is_static: bool = False) -> list[Place]:
    """Every dict of a config, outermost first.

    Args:
        root: the config's nested dicts; it is not changed.
        is_static: read constructors from their sources and import nothing, which takes a fraction of a second;
            values are not compared with annotations then, and types that cannot be found are passed over.
    """
    places: list[Place] = []
    _visit(root, "runner", "", places, is_static)
    return places


def _visit(value: Any, kind: str, path: str, places: list[Place], is_static: bool) -> None:
    if isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            _visit(inner, kind, f"{path}.{index}", places, is_static)
        return
    if not isinstance(value, dict):
        return
    slot = SLOTS[kind]
    if kind == "evaluator" and "type" not in value and "metrics" in value:
        slot = Slot(default="mmengine.evaluator.Evaluator", children={"metrics": "evaluator"})
    keys = {str(key): inner for key, inner in dict.items(value)}
    problems: list[str] = []
    signature = _signature(keys, slot, kind, path, problems, is_static)
    accepted = _accepted(signature, slot, kind)
    problems.extend(_unknown(keys, accepted, signature, path, kind))
    if signature is not None:
        problems.extend(_missing(keys, signature, slot, path))
        problems.extend(_wrong_values(keys, signature, path))
    owner = signature.name if signature is not None else kind
    places.append(Place(path, owner, accepted, tuple(problems)))
    for key, inner in keys.items():
        if key == "type" and not isinstance(inner, (dict, list)):
            continue
        child = _child_kind(key, slot, kind, signature)
        where = f"{path}.{key}" if path else key
        expected = typed_dict_keys(signature.keys[key]) if signature and key in signature.keys else None
        if expected is not None and isinstance(inner, dict) and "type" not in inner:
            names = frozenset(expected)
            wrong = _unknown(inner, names, None, where, child)
            places.append(Place(where, key, names, tuple(wrong)))
        else:
            _visit(inner, child, where, places, is_static)


def _signature(
    keys: Mapping[str, Any], slot: Slot, kind: str, path: str, problems: list[str], is_static: bool
) -> Signature | None:
    if slot.keys is not None:
        return None
    named = keys.get("type", slot.default)
    if named is None:
        near = closest("type", [key for key in keys if len(key) in (3, 4, 5)])
        if slot.needs_type or (kind == "typed" and near):
            hint = f" Did you mean 'type' where {near[0]!r} is written?" if near else ""
            problems.append(f"{path}: a {kind} needs the key 'type'.{hint}")
        return None
    if is_static:
        name = type_name(named)
        return static_signature(LAYER_CLASSES.get(name, name) if kind == "layer" else name)
    if named is slot.default:
        module, _, attribute = slot.default.rpartition(".")
        return signature_of(getattr(importlib.import_module(module), attribute))
    try:
        return signature_of(resolve_type(named, f"{path}.type" if path else "type"))
    except ConfigError as error:
        problems.append(str(error))
        return None


def _accepted(signature: Signature | None, slot: Slot, kind: str) -> frozenset[str] | None:
    if slot.keys is not None:
        return slot.keys
    if signature is None:
        return None
    hidden = frozenset({"self", "cfg"}) if kind == "runner" else frozenset({"self"})
    if kind == "sampler":
        hidden |= {"dataset", "sampler"}
    if kind in {"train_loop", "val_loop", "test_loop"}:
        hidden |= {"runner", "dataloader", "evaluator"}
    return (
        (frozenset(signature.keys) - hidden)
        | slot.extra
        | (_BUILDER_KEYS if kind != "runner" else frozenset())
    )


def _unknown(
    keys: Mapping[str, Any],
    accepted: frozenset[str] | None,
    signature: Signature | None,
    path: str,
    kind: str,
) -> list[str]:
    if accepted is None:
        return []
    owner = f"{signature.name} takes no" if signature is not None else f"{kind} has no"
    return [
        f"{path}.{key}: {owner} {key!r}.{did_you_mean(key, accepted)}".lstrip(".")
        for key in keys
        if key not in accepted
    ]


def _missing(keys: Mapping[str, Any], signature: Signature, slot: Slot, path: str) -> list[str]:
    if not slot.checks_required:
        return []
    absent = sorted(signature.required - slot.supplied - set(keys))
    return [f"{path}: {signature.name} needs {key!r}, which is missing." for key in absent]


def _wrong_values(keys: Mapping[str, Any], signature: Signature, path: str) -> list[str]:
    problems = []
    for key, value in keys.items():
        if key in signature.keys and not isinstance(value, (dict, list, tuple)):
            reason = scalar_problem(value, signature.keys[key])
            if reason is not None:
                problems.append(f"{path}.{key}: {reason}.".lstrip("."))
    return problems


def _child_kind(key: str, slot: Slot, kind: str, signature: Signature | None) -> str:
    if key in slot.children:
        return slot.children[key]
    if "*" in slot.children:
        return slot.children["*"]
    if kind == "any":
        return "any"
    return NAMED_CHILDREN.get(key, "typed")

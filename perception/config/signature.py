"""Which keys a class or function accepts when it is built from a config."""

import inspect
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal

_SCALARS = (bool, int, float, str)


@dataclass(frozen=True)
class Signature:
    """Keys of a constructor.

    Attributes:
        name: the class or function, for messages.
        keys: accepted keys and their annotations (``inspect.Parameter.empty`` where there is none).
        required: keys without a default.
    """

    name: str
    keys: Mapping[str, Any]
    required: frozenset[str] = field(default=frozenset())


@cache
def signature_of(target: Any) -> Signature:
    """Keys that ``target`` accepts; ``**kwargs`` is followed up the method resolution order.

    Example:
        >>> class Base:
        ...     def __init__(self, *, depth: int, width: int = 1): ...
        >>> class Derived(Base):
        ...     def __init__(self, name: str, **kwargs): ...
        >>> sorted(signature_of(Derived).keys), sorted(signature_of(Derived).required)
        (['depth', 'name', 'width'], ['depth', 'name'])
    """
    name = getattr(target, "__qualname__", str(target))
    if not inspect.isclass(target):
        keys, required, _ = _own_keys(target, skip_first=False)
        return Signature(name, keys, frozenset(required))
    keys, required = {}, set()
    for cls in target.__mro__:
        if "__init__" not in vars(cls) or cls is object or cls.__module__ == "torch.nn.modules.module":
            continue
        own, own_required, is_open = _own_keys(vars(cls)["__init__"], skip_first=True)
        required |= own_required - set(keys)
        keys = {**own, **keys}
        if not is_open:
            break
    return Signature(name, keys, frozenset(required))


def _own_keys(function: Any, *, skip_first: bool) -> tuple[dict[str, Any], set[str], bool]:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return {}, set(), False
    hints = _hints(inspect.unwrap(function))
    keys: dict[str, Any] = {}
    required: set[str] = set()
    is_open = False
    for parameter in parameters[1:] if skip_first else parameters:
        if parameter.kind is parameter.VAR_KEYWORD:
            is_open = True
        elif parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            keys[parameter.name] = hints.get(parameter.name, parameter.annotation)
            if parameter.default is parameter.empty:
                required.add(parameter.name)
    return keys, required, is_open


def _hints(function: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError, SyntaxError):
        return {}


def typed_dict_keys(annotation: Any) -> dict[str, Any] | None:
    """Keys of the TypedDict that an annotation names, alone or in a union; None where there is none.

    Example:
        >>> Range = typing.TypedDict("Range", {"low": float, "high": float})
        >>> sorted(typed_dict_keys(Range | None))
        ['high', 'low']
    """
    for option in _options(annotation):
        if typing.is_typeddict(option):
            return typing.get_type_hints(option)
    return None


def scalar_problem(value: Any, annotation: Any) -> str | None:
    """Why a plain value does not fit a plain annotation; None where it fits or where that cannot be told.

    Only annotations made wholly of bool, int, float, str, None and Literal are judged.

    Example:
        >>> scalar_problem("three", int)
        "expected int, found 'three'"
        >>> scalar_problem(3, float) is None
        True
    """
    options = _options(annotation)
    literals = [
        value
        for option in options
        if typing.get_origin(option) is Literal
        for value in typing.get_args(option)
    ]
    plain = [option for option in options if option in (*_SCALARS, NoneType)]
    num_literal_options = sum(typing.get_origin(option) is Literal for option in options)
    if len(plain) + num_literal_options != len(options) or not options:
        return None
    is_bool = isinstance(value, bool)
    fits = (
        any(value == literal and type(value) is type(literal) for literal in literals)
        or (value is None and NoneType in plain)
        or (is_bool and bool in plain)
        or (isinstance(value, int) and not is_bool and (int in plain or float in plain))
        or (isinstance(value, float) and float in plain)
        or (isinstance(value, str) and str in plain)
    )
    if fits or isinstance(value, (dict, list, tuple)) and not plain and not literals:
        return None
    allowed = [repr(literal) for literal in literals] + [
        "None" if option is NoneType else option.__name__ for option in plain
    ]
    return f"expected {' or '.join(allowed)}, found {value!r}"


def _options(annotation: Any) -> tuple[Any, ...]:
    if annotation is inspect.Parameter.empty or isinstance(annotation, str):
        return ()
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, UnionType):
        return tuple(inner for option in typing.get_args(annotation) for inner in _options(option))
    return (annotation,)

"""Type names in configs: how they are written down, and which of them may be loaded from text.

A Python config names classes by import. A JSON or YAML config, a run folder's ``config.json`` and ``--set`` name them
by text; such text may name only what lies under :data:`ALLOWED_PREFIXES` *and* is a class or function that a registry,
this package or torch offers for building. Nothing outside the prefixes is imported to find that out.
"""

import importlib
import inspect
from types import ModuleType
from typing import Any

from mmengine.config.lazy import LazyAttr, LazyObject

from perception.config.errors import ConfigError
from perception.config.suggest import did_you_mean

ALLOWED_PREFIXES = (
    "perception.",
    "mmengine.",
    "mmdet.",
    "mmdet3d.",
    "torch.nn.",
    "torch.optim.",
    "torch.utils.data.",
)
_TORCH_BASES = ("torch.nn.modules.module.Module", "torch.optim.optimizer.Optimizer", "torch.utils.data.")


def type_name(value: Any) -> str:
    """The dotted name of a type in a config, without importing anything that is not imported yet.

    Example:
        >>> from collections import OrderedDict
        >>> type_name(OrderedDict), type_name("BN")
        ('collections.OrderedDict', 'BN')
    """
    if isinstance(value, str):
        return value
    if isinstance(value, LazyObject):
        return value.module if value._imported is None else f"{value.module}.{value._imported}"
    if isinstance(value, LazyAttr):
        return f"{value.module}.{value.name}"
    return f"{value.__module__}.{value.__qualname__}"


def has_allowed_prefix(name: str) -> bool:
    """Whether text may name this type: a registry name without dots, ``scope.Name``, or a path under a prefix.

    Example:
        >>> has_allowed_prefix("torch.optim.AdamW"), has_allowed_prefix("os.system"), has_allowed_prefix("BN")
        (True, False, True)
    """
    return "." not in name or name.startswith(ALLOWED_PREFIXES)


def refuse_prefix(name: str, key: str) -> str:
    """The problem text for a type outside the prefixes."""
    return (
        f"{key}: the type {name!r} may not be loaded from text; allowed are registered names and the prefixes "
        f"{', '.join(ALLOWED_PREFIXES)} (a Python config may import what it needs)."
    )


def resolve_type(value: Any, key: str) -> Any:
    """The class or function that a config's ``type`` stands for.

    Args:
        value: a class, a lazy import of one, or text.
        key: dotted path of the key, for messages.

    Raises:
        ConfigError: it cannot be found or may not be loaded.
    """
    if isinstance(value, (LazyObject, LazyAttr)):
        try:
            return value.build()
        except ImportError as error:
            raise ConfigError(f"{key}: {type_name(value)} cannot be imported: {error}") from error
    if isinstance(value, str):
        return _from_text(value, key)
    if inspect.isclass(value) or callable(value):
        return value
    raise ConfigError(f"{key}: a type must be a class, a function or a name, found {value!r}.")


def text_to_lazy(name: str, key: str) -> str | LazyObject:
    """A checked, importable stand-in for a dotted name; registry names stay text.

    Raises:
        ConfigError: see :func:`resolve_type`.
    """
    _from_text(name, key)
    module, _, attribute = name.rpartition(".")
    return (
        LazyObject(module, attribute)
        if module and name.startswith(ALLOWED_PREFIXES) and _is_path(name)
        else name
    )


def _is_path(name: str) -> bool:
    return _registry_lookup(name) is None


def _from_text(name: str, key: str) -> Any:
    if not has_allowed_prefix(name):
        raise ConfigError(refuse_prefix(name, key))
    found = _registry_lookup(name)
    if found is not None:
        return found
    module_name, _, attribute = name.rpartition(".")
    if not module_name:
        raise ConfigError(f"{key}: no registry knows {name!r}.{did_you_mean(name, _registered_names())}")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"{key}: {name!r} cannot be imported: {error}") from error
    found = vars(module).get(attribute)
    if found is None:
        hint = did_you_mean(attribute, [word for word in vars(module) if not word.startswith("_")])
        raise ConfigError(f"{key}: {module_name} has no {attribute!r}.{hint}")
    if isinstance(found, ModuleType) or not _is_buildable(found):
        raise ConfigError(f"{key}: {name!r} is not a class or function that can be built from a config.")
    return found


def _is_buildable(value: Any) -> bool:
    if not (inspect.isclass(value) or inspect.isfunction(value)):
        return False
    if value.__module__.startswith("perception."):
        return True
    if inspect.isclass(value) and value.__module__.startswith("torch."):
        names = [f"{base.__module__}.{base.__qualname__}" for base in value.__mro__]
        return any(name.startswith(_TORCH_BASES) for name in names)
    return any(value is member for registry in _registries() for member in registry.module_dict.values())


def _registries() -> list[Any]:
    import mmengine.registry as roots

    # By name: registering is all that is wanted, and the layers let this package import neither of them.
    importlib.import_module("mmcv.cnn")
    importlib.import_module("perception.registry")
    pending = [value for value in vars(roots).values() if isinstance(value, roots.Registry)]
    found: list[Any] = []
    while pending:
        registry = pending.pop(0)
        if any(registry is other for other in found):
            continue
        found.append(registry)
        pending.extend(registry._children.values())
    return found


def _registry_lookup(name: str) -> Any:
    scope, _, rest = name.rpartition(".")
    if "." in scope:
        return None
    if scope in {"mmdet", "mmdet3d"}:
        importlib.import_module(f"{scope}.registry")
    # Ours first, as in a run, where MMEngine's default scope is ours: some names are in both.
    for registry in sorted(_registries(), key=lambda registry: registry.scope != "perception"):
        if scope and registry.scope != scope:
            continue
        if scope or registry.scope == "perception":
            registry.import_from_location()
        if rest in registry.module_dict:
            return registry.module_dict[rest]
    return None


def _registered_names() -> set[str]:
    return {name for registry in _registries() for name in registry.module_dict}

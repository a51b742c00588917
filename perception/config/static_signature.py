"""Keys that a class accepts, read from its source without importing it.

Importing torch and the OpenMMLab packages takes seconds; a misspelt key should be told at once. What cannot be read
with certainty (compiled or generated code) gives None, and is left to :mod:`perception.config.signature`.
"""

import ast
import importlib.util
import inspect
from functools import cache
from pathlib import Path

from perception.config.signature import Signature

_ENDS = frozenset({"object", "ABC", "Protocol", "Generic", "Module"})
_Definition = tuple[str, ast.ClassDef | ast.FunctionDef]


@cache
def static_signature(dotted: str) -> Signature | None:
    """Keys of a class or function by its dotted name; None where the source does not tell.

    Example:
        >>> sorted(static_signature("perception.config.names.ConfigName").required)[:2]
        ['backbone', 'batch_size']
    """
    module, _, name = dotted.rpartition(".")
    found = _find(module, name, frozenset())
    if found is None:
        return None
    if isinstance(found[1], ast.FunctionDef):
        keys, required, _ = _arguments(found[1], skip_first=False)
        return Signature(name, keys, frozenset(required))
    classes = _linearise(found)
    if classes is None:
        return None
    all_keys: dict[str, object] = {}
    all_required: set[str] = set()
    for definition in classes:
        own = _constructor(definition)
        if own is None:
            continue
        keys, required, is_open = own
        all_required |= required - set(all_keys)
        all_keys = {**keys, **all_keys}
        if not is_open:
            break
    return Signature(name, all_keys, frozenset(all_required))


@cache
def _module_file(module: str) -> Path | None:
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    base = Path(next(iter(spec.submodule_search_locations))).joinpath(*rest)
    candidates = (base / "__init__.py", base.with_suffix(".py"))
    return next((path for path in candidates if path.is_file()), None)


@cache
def _parse(module: str) -> tuple[ast.Module, bool] | None:
    path = _module_file(module)
    if path is None:
        return None
    try:
        return ast.parse(path.read_text(encoding="utf-8")), path.name == "__init__.py"
    except (OSError, SyntaxError, ValueError):
        return None


def _find(module: str, name: str, seen: frozenset[tuple[str, str]]) -> _Definition | None:
    """The module that defines a name, and the definition; re-exports are followed."""
    parsed = _parse(module)
    if parsed is None or (module, name) in seen:
        return None
    tree, is_package = parsed
    seen = seen | {(module, name)}
    stars = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return module, node
        if not isinstance(node, ast.ImportFrom):
            continue
        source = _absolute(module, is_package, node)
        for alias in node.names:
            if (alias.asname or alias.name) == name:
                return _find(source, alias.name, seen)
            if alias.name == "*":
                stars.append(source)
    hits = (_find(source, name, seen) for source in stars)
    return next((hit for hit in hits if hit is not None), None)


def _absolute(module: str, is_package: bool, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    kept = parts[: len(parts) - node.level + (1 if is_package else 0)]
    return ".".join([*kept, *([node.module] if node.module else [])])


def _linearise(definition: _Definition) -> list[ast.ClassDef] | None:
    """A class and its bases in the order in which constructors are looked for; None if a base is not found."""
    module, node = definition
    assert isinstance(node, ast.ClassDef)
    order = [node]
    for base in node.bases:
        expression = base.value if isinstance(base, ast.Subscript) else base
        name = expression.attr if isinstance(expression, ast.Attribute) else getattr(expression, "id", "")
        if name in _ENDS:
            continue
        found = _find(module, name, frozenset()) if isinstance(expression, ast.Name) else None
        above = _linearise(found) if found is not None and isinstance(found[1], ast.ClassDef) else None
        if above is None:
            own = _constructor(node)
            if own is not None and not own[2]:
                return order  # what the base accepts does not matter
            return None
        order = [cls for cls in order if cls not in above] + above
    return order


def _constructor(node: ast.ClassDef) -> tuple[dict[str, object], set[str], bool] | None:
    for inner in node.body:
        if isinstance(inner, ast.FunctionDef) and inner.name == "__init__":
            return _arguments(inner, skip_first=True)
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        fields = [inner for inner in node.body if isinstance(inner, ast.AnnAssign)]
        names = {field.target.id: field for field in fields if isinstance(field.target, ast.Name)}
        keys: dict[str, object] = dict.fromkeys(names, inspect.Parameter.empty)
        return keys, {name for name, field in names.items() if field.value is None}, False
    return None


def _arguments(node: ast.FunctionDef, *, skip_first: bool) -> tuple[dict[str, object], set[str], bool]:
    positional = [*node.args.posonlyargs, *node.args.args]
    names = [argument.arg for argument in positional]
    num_without_default = len(names) - len(node.args.defaults)
    required = set(names[:num_without_default])
    if skip_first:
        required.discard(names[0])
        names = names[1:]
    for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
        names.append(argument.arg)
        if default is None:
            required.add(argument.arg)
    return dict.fromkeys(names, inspect.Parameter.empty), required, node.args.kwarg is not None

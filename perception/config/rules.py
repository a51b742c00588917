"""What a Python config may contain, checked on its syntax tree before anything of it runs.

The rules: one ``with read_base():`` block of relative imports; otherwise imports only from the packages in
:data:`ALLOWED_PACKAGES`; no def, class, lambda, loop, condition or try; calls only of plain constructors and of the
methods that merge dicts and lists; no dunder names. Python configs are code all the same: run only those you trust.
"""

import ast
from pathlib import Path

from perception.config.errors import ConfigError

ALLOWED_PACKAGES = ("perception", "mmengine", "mmdet", "mmdet3d", "torch")
ALLOWED_CALLS = frozenset(
    "dict list tuple set range len min max sum abs round int float str bool sorted zip enumerate read_base".split()
)
ALLOWED_METHODS = frozenset("update merge pop append extend insert copy".split())
_STATEMENTS = (
    ast.Assign,
    ast.AnnAssign,
    ast.AugAssign,
    ast.Delete,
    ast.Import,
    ast.ImportFrom,
    ast.With,
    ast.Expr,
)
_FORBIDDEN = {
    ast.FunctionDef: "def",
    ast.AsyncFunctionDef: "async def",
    ast.ClassDef: "class",
    ast.Lambda: "lambda",
    ast.Await: "await",
    ast.Yield: "yield",
    ast.YieldFrom: "yield from",
    ast.NamedExpr: "the := operator",
}


def check_rules(tree: ast.Module, path: Path) -> list[str]:
    """Every breach of the rules in one config file, as ``file:line: what and what to do``.

    Example:
        >>> check_rules(ast.parse("import os"), Path("c.py"))[0]
        'c.py:1: imports os; a config imports only from perception, mmengine, mmdet, mmdet3d, torch.'
    """
    problems: list[tuple[int, str]] = []
    bases = [node for node in tree.body if isinstance(node, ast.With)]
    if len(bases) > 1:
        problems.append((bases[1].lineno, "has a second read_base() block; put all bases into the first."))
    in_base = {inner for base in bases for inner in ast.walk(base)}
    for statement in tree.body:
        if not isinstance(statement, _STATEMENTS):
            kind = _FORBIDDEN.get(type(statement), type(statement).__name__.lower())
            problems.append((statement.lineno, f"uses {kind}; a config only imports and assigns values."))
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.With):
            problems.extend((line, text) for text in _base_block(node, tree))
        elif isinstance(node, (ast.Import, ast.ImportFrom)) and node not in in_base:
            problems.extend((line, text) for text in _imports(node))
        elif isinstance(node, ast.Call):
            problems.extend((line, text) for text in _call(node))
        elif isinstance(node, ast.Attribute) and node.attr.startswith("__"):
            problems.append((line, f"reads {node.attr}; dunder names are not allowed."))
        elif isinstance(node, ast.Name) and node.id.startswith("__") and node.id != "__file__":
            problems.append((line, f"uses {node.id}; dunder names are not allowed."))
        elif type(node) in _FORBIDDEN and node not in tree.body:
            problems.append((line, f"uses {_FORBIDDEN[type(node)]}; put code into the perception package."))
    return [f"{path}:{line}: {text}" for line, text in sorted(problems)]


def base_files(tree: ast.Module, path: Path) -> list[tuple[Path, list[str] | None]]:
    """The base files of a config and which names it takes from each (None: all).

    Raises:
        ConfigError: a base file does not exist.
    """
    found: list[tuple[Path, list[str] | None]] = []
    for block in tree.body:
        if not isinstance(block, ast.With):
            continue
        for node in block.body:
            if not isinstance(node, ast.ImportFrom) or node.module is None:
                continue
            folder = path.parent.joinpath(*[".."] * (node.level - 1))
            target = folder.joinpath(*node.module.split(".")).with_suffix(".py")
            if not target.is_file():
                raise ConfigError(f"{path}:{node.lineno}: the base config {target} does not exist.")
            names = [alias.asname or alias.name for alias in node.names]
            found.append((target.resolve(), None if names == ["*"] else names))
    return found


def assigned_names(tree: ast.Module) -> set[str]:
    """Names that a config file itself binds by assignment at its top level."""
    names = set()
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            for inner in ast.walk(target) if target is not None else ():
                if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                    names.add(inner.id)
    return names


def _base_block(node: ast.With, tree: ast.Module) -> list[str]:
    problems = []
    expression = node.items[0].context_expr
    is_read_base = (
        isinstance(expression, ast.Call)
        and isinstance(expression.func, ast.Name)
        and expression.func.id == "read_base"
    )
    if not is_read_base or len(node.items) != 1 or node not in tree.body:
        problems.append("uses a with block other than `with read_base():`.")
    for inner in node.body:
        if not isinstance(inner, ast.ImportFrom) or inner.level == 0 or inner.module is None:
            problems.append(
                "has something other than relative imports (`from .x import *`) under read_base()."
            )
    return problems


def _imports(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        if node.level:
            return ["has a relative import outside read_base(); put it into the block."]
        modules = [node.module or ""]
        if any(alias.name == "*" for alias in node.names):
            return [f"imports * from {node.module}; name what is used."]
    else:
        modules = [alias.name for alias in node.names]
    return [
        f"imports {module}; a config imports only from {', '.join(ALLOWED_PACKAGES)}."
        for module in modules
        if module.split(".")[0] not in ALLOWED_PACKAGES
    ]


def _call(node: ast.Call) -> list[str]:
    if isinstance(node.func, ast.Name):
        if node.func.id in ALLOWED_CALLS:
            return []
        return [
            f"calls {node.func.id}(); a config calls only {', '.join(sorted(ALLOWED_CALLS))}. "
            f"Write dict(type={node.func.id}, ...) to have an object built."
        ]
    if isinstance(node.func, ast.Attribute) and node.func.attr in ALLOWED_METHODS:
        return []
    name = ast.unparse(node.func)
    return [f"calls {name}(); of methods a config calls only {', '.join(sorted(ALLOWED_METHODS))}."]

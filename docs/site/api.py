"""The directive `api PACKAGE`: a package's public names, by Griffe, which reads the source and imports nothing.

Docstrings here are Markdown in Google's form, so they are written out as Markdown, in Sphinx's directives for Python.
"""

import functools
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import griffe
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util import logging as sphinx_logging
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]
# Names such as `Balancer` and `build_balancer`; a plain word may mean a method or an argument just as well.
_PLAIN_CODE = re.compile(r"(?<!`)`(\w*[A-Z_]\w*)`(?!`)")


class _ToSphinx(logging.Handler):
    """Hands Griffe's complaints about docstrings to Sphinx, which counts them as warnings."""

    def emit(self, record: logging.LogRecord) -> None:
        """Hand one on."""
        if record.levelno >= logging.WARNING:
            sphinx_logging.getLogger(__name__).warning(record.getMessage())


@functools.cache
def read_package() -> griffe.Module:
    """The whole of `perception`, parsed."""
    return griffe.load("perception", search_paths=[str(ROOT)], docstring_parser="google")


def public_names(package: str) -> list[str]:
    """Names in a package's `__all__`, sorted without regard to case."""
    exports = read_package()[package].exports if package else None
    return sorted((str(name) for name in exports or ()), key=str.lower)


def public_packages() -> list[str]:
    """Packages below `perception` that have an `__all__`, such as "datasets.transforms"."""
    found = []

    def look(module: griffe.Module, path: str) -> None:
        for name, child in sorted(module.modules.items()):
            if child.is_init_module:
                if child.exports:
                    found.append(f"{path}{name}")
                look(child, f"{path}{name}.")

    look(read_package(), "")
    return found


@functools.cache
def homes() -> dict[str, str]:
    """Public name → its full name, the first package's where several have it."""
    found: dict[str, str] = {}
    for package in public_packages():
        for name in public_names(package):
            found.setdefault(name, f"perception.{package}.{name}")
    return found


def describe(package: str) -> Iterator[str]:
    """Markdown lines of one package."""
    module = read_package()[package]
    yield from (_linked(module.docstring.value) if module.docstring else "").splitlines()
    yield from ("", f"```{{py:module}} perception.{package}", "```", "")
    for name in public_names(package):
        item = module[name]
        yield from _object(item.final_target if item.is_alias else item, name)


def _object(item: griffe.Object, name: str) -> Iterator[str]:
    if item.is_class:
        members = [member for member in item.members.values() if not member.is_alias and _is_shown(member)]
        init = item.members.get("__init__")
        arguments = _signature(init) if init is not None and init.is_function else ""
        yield from _directive("class", f"{name}{arguments}", _body(item, members), ticks=8)
    elif item.is_function:
        yield from _directive("function", f"{name}{_signature(item)}", _body(item), ticks=8)
    else:
        yield from _directive("data", name, _body(item), ticks=8)


def _is_shown(member: griffe.Object) -> bool:
    return not member.name.startswith("_") and member.docstring is not None


def _body(item: griffe.Object, members: Iterable[griffe.Object] = ()) -> Iterator[str]:
    if item.docstring is None and item.is_attribute and item.value is not None and len(str(item.value)) < 400:
        yield from ("", f"`{item.value}`", "")
    if item.docstring is not None:
        for section in item.docstring.parsed:
            yield from _section(section)
    for member in members:
        if member.is_function:
            yield from _directive("method", f"{member.name}{_signature(member)}", _body(member), ticks=6)
        else:
            kind = "property" if "property" in member.labels else "attribute"
            yield from _directive(kind, member.name, _body(member), ticks=6)


def _directive(kind: str, signature: str, body: Iterable[str], *, ticks: int) -> Iterator[str]:
    yield from (f"{'`' * ticks}{{py:{kind}}} {signature}", *body, "`" * ticks, "")


def _signature(function: griffe.Function) -> str:
    parts: list[str] = []
    has_star = False
    for parameter in function.parameters:
        if parameter.name in ("self", "cls") and not parts:
            continue
        kind = parameter.kind
        if kind is griffe.ParameterKind.keyword_only and not has_star:
            parts.append("*")
            has_star = True
        has_star = has_star or kind is griffe.ParameterKind.var_positional
        star = {griffe.ParameterKind.var_positional: "*", griffe.ParameterKind.var_keyword: "**"}.get(
            kind, ""
        )
        text = star + parameter.name + (f": {parameter.annotation}" if parameter.annotation else "")
        if parameter.default is not None and not star:
            text += f" = {parameter.default}" if parameter.annotation else f"={parameter.default}"
        parts.append(text)
        if kind is griffe.ParameterKind.positional_only and _is_last_positional(function, parameter):
            parts.append("/")
    returned = f" -> {function.returns}" if function.returns and function.name != "__init__" else ""
    return f"({', '.join(parts)}){returned}"


def _is_last_positional(function: griffe.Function, parameter: griffe.Parameter) -> bool:
    kinds = [other for other in function.parameters if other.kind is griffe.ParameterKind.positional_only]
    return kinds[-1].name == parameter.name


def _section(section: griffe.DocstringSection) -> Iterator[str]:
    kind = griffe.DocstringSectionKind
    if section.kind is kind.text:
        yield from (*_linked(section.value).splitlines(), "")
    elif section.kind in (kind.parameters, kind.attributes, kind.other_parameters):
        title = "Attributes" if section.kind is kind.attributes else "Arguments"
        yield from (f"*{title}*", "")
        yield from (f"- `{item.name}`: {_indented(item.description)}" for item in section.value)
        yield ""
    elif section.kind in (kind.returns, kind.yields):
        title = "Returns" if section.kind is kind.returns else "Yields"
        yield from (f"*{title}*: " + _linked("\n".join(item.description for item in section.value)), "")
    elif section.kind is kind.raises:
        yield from ("*Raises*", "")
        yield from (f"- `{item.annotation}`: {_indented(item.description)}" for item in section.value)
        yield ""
    elif section.kind is kind.admonition and ">>>" in section.value.description:
        yield from ("*Example*", "", "```pycon", *section.value.description.splitlines(), "```", "")
    elif section.kind is kind.admonition:
        yield from (f"*{section.title}*: {_linked(section.value.description)}", "")
    else:
        raise ValueError(
            f"a docstring has a section of kind {section.kind}, which no one has written here yet"
        )


def _indented(text: str) -> str:
    return _linked(text).replace("\n", "\n  ")


def _linked(text: str) -> str:
    """The text, with code that is a public name made a link."""
    return _PLAIN_CODE.sub(
        lambda found: f"{{py:obj}}`~{homes()[found[1]]}`" if found[1] in homes() else found[0], text
    )


class Api(SphinxDirective):
    """Markdown of one package."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Write the package's names."""
        package = self.arguments[0].removeprefix("perception.")
        container = nodes.container()
        lines = [line for text in describe(package) for line in text.split("\n")]
        self.state.nested_parse(StringList(lines, source=f"perception.{package}"), 0, container)
        return container.children


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive; called by Sphinx."""
    app.add_directive("api", Api)
    logging.getLogger("griffe").addHandler(_ToSphinx())
    return {"parallel_read_safe": True, "parallel_write_safe": True}

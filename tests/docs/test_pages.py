"""The pages as a whole: none is out of the table of contents, every public package and method has its place."""

import inspect
import re
from pathlib import Path

import pytest

from perception.balancing.build import _allowed, _parameters
from perception.balancing.methods import COMBINATIONS, METHODS, PARTS, PRESETS, Method
from perception.config import list_configs

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
METHOD_PAGES = sorted((DOCS / "methods").glob("*.md"))
CARDS = sorted((DOCS / "cards").glob("*.md"))
SHARED_OPTIONS = {"weighting", "combination", "groups", "scales", "convention", "scale_heads"}
"""Told once on the pages, for all methods that take them."""

_TOCTREE = re.compile(r"^```{toctree}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SECTION = re.compile(r"^## `(\w+)`\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_OPTION = re.compile(r"`(\w+)`(?: \(((?:[^()]|\(\))+)\))?")
_COUNT = re.compile(r"([\d,]{7,}) parameters(?:, ([\d,]+) of\s+them trained)?")


def sections() -> dict[str, str]:
    """Method → its section."""
    found: dict[str, str] = {}
    for page in METHOD_PAGES:
        for name, text in _SECTION.findall(page.read_text(encoding="utf-8")):
            assert name not in found, f"{name} has two sections"
            found[name] = text
    return found


def default_of(method: Method, option: str) -> str:
    """A default as the pages write it."""
    default = _parameters(method.load())[option].default
    return "needed" if default is inspect.Parameter.empty else repr(default)


def test_every_page_is_in_the_table_of_contents():
    text = (DOCS / "index.md").read_text(encoding="utf-8")
    entries = [
        line.rpartition("<")[2].rstrip(">")
        for tree in _TOCTREE.findall(text)
        for line in tree.split("\n")
        if line and line[0] != ":"
    ]
    listed = {path.resolve() for entry in entries for path in DOCS.glob(f"{entry}.md")}
    pages = {page for page in DOCS.rglob("*.md") if page.name != "index.md"}
    pages |= {ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "data" / "README.md"}
    pages |= set((ROOT / "projects").rglob("README.md"))
    missing = sorted(str(page.relative_to(ROOT)) for page in pages - listed)
    assert not missing, f"docs/index.md lacks {missing}: add each to one of its toctrees"


def test_every_public_package_has_its_page():
    packages = {
        ".".join(path.parent.relative_to(ROOT / "perception").parts)
        for path in (ROOT / "perception").rglob("__init__.py")
        if "\n__all__" in path.read_text(encoding="utf-8")
    }
    described = {
        name
        for page in (DOCS / "api").glob("*.md")
        for name in re.findall(r"```{api} perception\.([\w.]+)", page.read_text(encoding="utf-8"))
    }
    assert described <= packages
    missing = {
        package for package in packages - described if "." not in package
    }  # deeper ones serve their parents
    assert not missing, f"docs/api has no page for {sorted(missing)}; make one like docs/api/ops.md"


def test_every_method_has_its_section():
    assert set(sections()) == set(METHODS)
    text = "".join(page.read_text(encoding="utf-8") for page in METHOD_PAGES)
    for name in (*PRESETS, *COMBINATIONS):
        assert f"`{name}`" in text, f"docs/methods tell nothing of {name}"


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_equation_source_and_options(name):
    text = sections()[name]
    assert text.count("$$") >= 2, "no equation"
    assert name in ("even", "constant") or re.search(r"(19|20)\d\d|AMTL|MCLGS|wPCGrad", text), "no source"
    (line,) = re.findall(r"^Options: (.*)$", text, re.MULTILINE)
    listed = dict(_OPTION.findall(re.split(r"(?<!\()\.(?: |$)|;", line)[0]))
    allowed = set(_allowed(METHODS[name]))
    assert allowed - SHARED_OPTIONS <= set(listed) <= allowed
    for option, told in listed.items():
        assert told in ("", default_of(METHODS[name], option)), f"{name}: {option}"


@pytest.mark.parametrize("kind", PARTS)
def test_parts_of_methods_are_listed(kind):
    text = sections()[{"priority": "wpcgrad", "pacing": "mclgs"}[kind]]
    for name, method in PARTS[kind].items():
        (row,) = re.findall(rf"^\| `{name}` \|.*\| (.*) \|$", text, re.MULTILINE)
        assert set(re.findall(r"`(\w+)`", row)) == set(_allowed(method)), name


def test_every_config_is_on_a_card():
    text = "".join(page.read_text(encoding="utf-8") for page in CARDS)
    shipped = {config.short for config in list_configs() if "projects" not in config.path.parts}
    named = set(re.findall(r"`((?:bevformer|fcos)_\w+)`", text))
    missing = {name for name in shipped - named if name.removesuffix("_det") not in named}
    missing = {name for name in missing if not re.fullmatch(r"bevformer_official_\w+_static.*", name)}
    assert not missing, f"no card in docs/cards names {sorted(missing)}"


def test_cards_have_the_models_counts():
    text = "".join(page.read_text(encoding="utf-8") for page in CARDS)
    for path in (ROOT / "configs" / "_base_" / "models").glob("*.py"):
        docstring = path.read_text(encoding="utf-8").partition('"""')[2].partition('"""')[0]
        count = _COUNT.search(docstring)
        if count:
            assert count[1] in text, f"no card has the {count[1]} parameters of {path.name}"
            assert count[2] is None or count[2] in text, (
                f"no card has the {count[2]} trained ones of {path.name}"
            )


@pytest.mark.parametrize("card", CARDS, ids=lambda page: page.stem)
def test_a_card_says_all_that_a_card_must(card):
    text = card.read_text(encoding="utf-8").lower()
    for word in ("what it is", "what they are"), ("input",), ("parameters",), ("recipe",), ("weights",), ("licence",), \
            ("measured",), ("not run", "amd epyc"), ("## limits",):  # fmt: skip
        assert any(choice in text for choice in word), f"{card.name} says nothing of {word[0]}"


def test_pages_are_short():
    for page in DOCS.rglob("*.md"):
        assert "results" in page.parts or len(page.read_text(encoding="utf-8").splitlines()) <= 110, page

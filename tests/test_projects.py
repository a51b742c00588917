"""Each paper's folder: its configs change the balancer only, its balancers can be built, its commands parse."""

import json
from pathlib import Path

import pytest

from perception.balancing import build_balancer
from perception.config import load_config, parse_config_name
from perception.engine import to_plain
from tests.test_docs import ROOT, commands, config_names, parse, snippets

PROJECTS = sorted(path.parent for path in (ROOT / "projects").glob("*/README.md"))
CONFIGS = sorted(path for project in PROJECTS for path in (project / "configs").glob("*.py"))


def test_the_four_papers() -> None:
    assert [project.name for project in PROJECTS] == ["amtl", "connection_strength", "mclgs", "wpcgrad"]
    with_configs = {path.parents[1].name for path in CONFIGS}
    assert with_configs == {"amtl", "connection_strength", "mclgs", "wpcgrad"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem.split("_1xb")[0].split("_8xb")[0])
def test_a_config_changes_the_balancer_only(path: Path) -> None:
    found = to_plain(load_config(path).to_dict())
    base = to_plain(load_config(parse_config_name(path).model).to_dict())
    balancer = found["optim_wrapper"].pop("balancer")
    plain = base["optim_wrapper"].pop("balancer", None)  # the sum, where losses have constant scales
    assert found == base
    if plain is not None:
        assert plain["name"] == "sum"
        assert balancer["scales"] == plain["scales"]
    build_balancer(balancer)


@pytest.mark.parametrize("project", PROJECTS, ids=lambda project: project.name)
def test_balancers_with_arguments(project: Path) -> None:
    for path in project.glob("balancers*.json"):
        for spec in json.loads(path.read_text()).values():
            build_balancer(spec)


def test_comparing_the_small_model_keeps_its_scales() -> None:
    specs = json.loads((ROOT / "projects" / "wpcgrad" / "balancers_small.json").read_text())
    plain = to_plain(load_config("bevformer_small").to_dict())["optim_wrapper"]["balancer"]
    assert all(spec["scales"] == plain["scales"] for spec in specs.values())


@pytest.mark.parametrize("project", PROJECTS, ids=lambda project: project.name)
def test_pages(project: Path) -> None:
    page = project / "README.md"
    text = page.read_text(encoding="utf-8")
    for heading in ("## Published", "## Not run", "## Configs", "## Commands", "## Ours"):
        assert heading in text
    found = commands(page)
    assert found
    for command, _ in found:
        args = parse(command)
        for name in config_names(args) if args else ():
            load_config(name)
        file = getattr(args, "balancers_file", None)
        assert file is None or (ROOT / file).is_file()
    shown = set(snippets(page))
    for path in (project / "configs").glob("*.py"):
        short = parse_config_name(path).short
        assert any(short in snippet for snippet in shown), f"{page} does not show {short}"

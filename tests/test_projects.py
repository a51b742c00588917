"""Each paper's folder: its configs change the balancer only, its balancers can be built, its commands parse."""

import json
from pathlib import Path

import pytest

from perception.balancing import build_balancer
from perception.config import load_config, parse_config_name
from perception.engine import to_plain
from perception.engine.compare_table import PaperTable
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
    assert found == base
    build_balancer(balancer)


@pytest.mark.parametrize("project", PROJECTS, ids=lambda project: project.name)
def test_balancers_with_arguments(project: Path) -> None:
    for path in project.glob("balancers*.json"):
        for spec in json.loads(path.read_text()).values():
            build_balancer(spec)
    for path in project.glob("table*.json"):
        for spec in PaperTable.read(path).balancers.values():
            build_balancer(spec)


@pytest.mark.parametrize(
    ("config", "file"),
    [
        ("bevformer_nano_det-seg-wpcgrad-dtp", "balancers.json"),
        ("bevformer_small_det-seg-wpcgrad-dtp", "balancers_small.json"),
    ],
)
def test_the_comparison_has_the_configs_priorities(config: str, file: str) -> None:
    compared = json.loads((ROOT / "projects" / "wpcgrad" / file).read_text())["wpcgrad-dtp"]
    trained = to_plain(load_config(config).to_dict())["optim_wrapper"]["balancer"]
    assert compared == trained
    assert set(trained["priority"]["scales"]) == {"cls", "box", "velocity", "seg"}


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
        plan = getattr(args, "plan", None)
        assert plan is None or (ROOT / plan).is_file()
    shown = set(snippets(page))
    for path in (project / "configs").glob("*.py"):
        short = parse_config_name(path).short
        assert any(short in snippet for snippet in shown), f"{page} does not show {short}"


@pytest.mark.parametrize("path", sorted((ROOT / "projects").glob("*/results/*.json")), ids=str)
def test_tables_are_those_of_the_results(path: Path) -> None:
    """Every finished run's scores stand in the page, and neither names a folder of somebody's machine."""
    text = path.read_text(encoding="utf-8")
    assert '"/' not in text
    page = (path.parents[1] / "README.md").read_text(encoding="utf-8")
    ours = page[page.index("## Ours") :]
    assert f"results/{path.name}" in ours
    result = json.loads(text)
    rows = [line for line in ours.splitlines() if line.startswith("|")]
    for group in (*result["single"].values(), *result["balancers"].values()):
        scores = [
            f"{group['metrics'][name]['mean']:.3f}"
            for name in ("NDS", "AP", "mIoU")
            if name in group["metrics"]
        ]
        found = [row for row in rows if all(score in row for score in scores)]
        assert found, f"{path.parents[1].name} has no row with {scores}"
        assert any(row.rstrip("| ").endswith(str(len(group["runs"]))) for row in found)

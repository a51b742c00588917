"""A paper's table beside our numbers, and the sizes of models."""

import json
from pathlib import Path
from typing import Any

import pytest

from perception.config import ConfigError
from perception.engine.compare_scores import (
    DEFAULT_SCORES,
    IMAGE_SCORES,
    RunScores,
    comparison_page,
    default_scores,
    describe_group,
    relative_sizes,
    score_group,
)
from perception.engine.compare_table import PaperTable

PLAN = Path(__file__).resolve().parents[2] / "projects" / "mclgs" / "table4.json"


def runs(*metrics: dict[str, float]) -> dict[int, RunScores]:
    return {
        seed: RunScores(
            metrics=found, steps=4, seconds=2.0, conflict_share=None, group_conflict_share=None, cosines={}
        )
        for seed, found in enumerate(metrics)
    }


@pytest.fixture
def result() -> dict[str, Any]:
    singles = {"det": runs({"AP": 0.20}, {"AP": 0.22}), "seg": runs({"mIoU": 0.40}, {"mIoU": 0.44})}
    ours = runs({"AP": 0.25, "mIoU": 0.5}, {"AP": 0.23, "mIoU": 0.5})
    return {
        "config": "fcos_nano",
        "command": "perception compare fcos_nano",
        "reference": None,
        "scores": IMAGE_SCORES,
        "single": {task: describe_group(found) for task, found in singles.items()},
        "balancers": {"mclgs": {**describe_group(ours), **score_group(ours, singles, IMAGE_SCORES, [])}},
        "parameters": {"single det": 900, "single seg": 1100, "mclgs": 1150},
        "failed": [],
        "unfinished": [],
        "notes": [],
    }


def test_the_papers_table(result: dict[str, Any]) -> None:
    lines = PaperTable.read(PLAN).page(result).splitlines()
    assert lines[0] == "## MCLGS, Table 4: BDD100K, FCOS with a segmentation head"
    header = [cell.strip() for cell in lines[4].strip("|").split("|")]
    rows = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in
            (line.strip("|").split("|") for line in lines[6:])}  # fmt: skip
    assert header == [
        "method", "#P ours", "paper", "mAP@.50:.95 ↑ ours", "paper", "mIoU ↑ ours", "paper", "Δm % ↓ ours", "paper"
    ]  # fmt: skip
    assert list(rows) == ["single-task", "MTL baseline", "MGDA", "PCGrad", "GradDrop", "CAGrad", "MCLGS"]
    assert rows["single-task"][:4] == ["2", "2", "21.00 ± 1.00", "25.37 ± 0.07"]
    assert rows["MTL baseline"][0] == "–"
    drop = -100 * (0.24 / 0.21 - 1 + 0.5 / 0.42 - 1) / 2
    assert rows["MCLGS"][0] == "1.15"
    assert rows["MCLGS"][2:6] == ["24.00 ± 1.00", "26.31 ± 0.02", "50.00 ± 0.00", "51.82 ± 0.08"]
    assert rows["MCLGS"][6].startswith(f"{drop:.2f} ± ")


def test_published_numbers_are_those_of_the_page() -> None:
    """The plan's and the README's copies of the paper agree, to the decimals shown."""
    text = (PLAN.parent / "README.md").read_text(encoding="utf-8")
    section = text[text.index("Table 4, BDD100K") : text.index("Table 2, BDD100K")].replace("*", "")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if "±" in line
    ]
    plan = PaperTable.read(PLAN)
    assert [row[0] for row in rows] == list(plan.names.values())
    for label, row in zip(plan.names, rows, strict=True):
        for column, cell in zip(("AP", "mIoU"), row[1:3], strict=True):
            mean, _, error = cell.partition(" ± ")
            assert plan.published[label][column] == f"{mean} ± {float(error) * 100:.2f}"
        assert plan.published[label].get("delta_m", "–") == row[3]


def test_sizes_are_relative_to_the_single_models(result: dict[str, Any]) -> None:
    sizes = relative_sizes(result)
    assert sizes == {"single det": 0.9, "single seg": 1.1, "mclgs": 1.15}
    page = comparison_page(result)
    assert "| balancer | #P | AP | mIoU |" in page
    assert "| mclgs | 1.15 | 0.2400 ± 0.0100 |" in page
    del result["parameters"]["single det"]
    assert relative_sizes(result) == {}
    assert "#P" not in comparison_page(result)


def test_plans_that_are_wrong(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    content = json.loads(PLAN.read_text())
    for changed, message in (
        ("{", "cannot be read"),
        ("[]", "holds list"),
        (json.dumps({**content, "titel": "x"}), "Did you mean 'title'"),
        (json.dumps({"title": "x"}), "'balancers' is missing"),
    ):
        path.write_text(changed)
        with pytest.raises(ConfigError, match=message):
            PaperTable.read(path)
    plan = PaperTable.read(PLAN)
    assert list(plan.choose(["mclgs", "sum"])) == ["mclgs", "sum"]
    assert plan.choose([]) == plan.balancers
    with pytest.raises(ConfigError, match="Did you mean 'mgda'"):
        plan.choose(["mgd"])


def test_default_scores_follow_the_metrics() -> None:
    assert default_scores({"val_evaluator": {"type": "perception.evaluation.BoxAPMetric"}}) == IMAGE_SCORES
    assert default_scores({"val_evaluator": [{"type": "NuScenesDetectionMetric"}]}) == DEFAULT_SCORES
    assert default_scores({}) == DEFAULT_SCORES

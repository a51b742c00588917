"""The page of measured exports shows the numbers that are committed beside it."""

import json
from pathlib import Path
from typing import Any

import pytest

from perception.export.export_model import FILES

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
MEASURED = json.loads((RESULTS / "export.json").read_text("utf-8"))
PAGE = (RESULTS / "export.md").read_text("utf-8").splitlines()
OUTPUTS = ("boxes", "scores", "seg", "bev")


def row_of(*starts: str) -> list[str]:
    """Cells of the only row that begins so."""
    (row,) = (line for line in PAGE if line.startswith("| " + " | ".join(starts) + " |"))
    return [cell.strip() for cell in row.strip("|").split("|")]


@pytest.mark.parametrize("name", MEASURED)
def test_the_page_shows_the_committed_latencies(name: str) -> None:
    result = MEASURED[name]
    width, height = result["image"]
    row = row_of(f"`{result['name']}`", f"{width} × {height}", str(result["threads"]))
    for candidate, milliseconds in result["ms"].items():
        share = "" if candidate == "torch eager" else f" ({result['speedup'][candidate]:.2f})"
        assert f"{milliseconds:,.0f}{share}" in row, candidate


@pytest.mark.parametrize("name", [name for name, result in MEASURED.items() if result["threads"] == 2])
def test_the_page_shows_the_committed_differences(name: str) -> None:
    result = MEASURED[name]
    for variant, found in result["differences"].items():
        row = row_of(f"`{result['name']}`", variant)
        seconds = result["seconds"]["onnx" if variant == "fp32" else variant]
        assert row[2:4] == [f"{seconds:.0f}", f"{result['bytes'][FILES[variant]] / 1e6:.1f}"]
        assert row[4:] == [cell_of(result, variant, output) for output in OUTPUTS], (name, variant, found)


def cell_of(result: dict[str, Any], variant: str, output: str) -> str:
    if output not in result["differences"]["fp32"]:  # the model has no such output
        return ""
    found = result["differences"][variant].get(output)
    if found is None:  # no box scored enough to be compared
        return "–"
    is_of_classes = output == "seg" and result["name"].startswith("fcos")
    return f"{found:.1e}" + " of the pixels" * is_of_classes

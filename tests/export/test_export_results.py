"""The page of measured exports shows the numbers that are committed beside it."""

import json
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"


def test_the_page_shows_the_committed_latencies():
    page = (RESULTS / "export.md").read_text("utf-8")
    for result in json.loads((RESULTS / "export.json").read_text("utf-8")).values():
        (row,) = (
            line
            for line in page.splitlines()
            if line.startswith(f"| `{result['name']}` | {result['image'][0]} × {result['image'][1]} | ")
            and f" | {result['threads']} | " in line
        )
        for name, milliseconds in result["ms"].items():
            share = "" if name == "torch eager" else f" ({result['speedup'][name]:.2f})"
            assert f"| {milliseconds:,.0f}{share} |" in row, (result["name"], name)

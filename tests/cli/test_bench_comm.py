"""`perception bench comm`: its table, which the page shows, its JSON, and wrong arguments."""

import json
from pathlib import Path

import pytest

from perception.cli.main import main
from tests.cli.test_bad_input import fail

PAGES = Path(__file__).resolve().parents[2] / "docs"


def test_the_page_shows_the_table(capsys):
    assert main(["bench", "comm"]) == 0
    tables = capsys.readouterr().out.split("\n\n- plain:")[0]
    assert tables.count("\n| 4096 |") == 12
    shown = (PAGES / "many_ranks.md").read_text(encoding="utf-8")
    left_out = ("| parts |", "| last_layer |")  # as the page says
    missing = [
        line for line in tables.splitlines() if line not in shown and not any(map(line.count, left_out))
    ]
    assert not missing


def test_the_page_shows_zero(capsys):
    words = ["bench", "comm", "--method", "pcgrad", "--ranks", "8", "--parameters", "43.9M"]
    shown = (PAGES / "deepspeed.md").read_text(encoding="utf-8")
    for stage, live in ((2, "1B"), (3, "1B"), (3, "10M")):
        assert main([*words, "--zero-stage", str(stage), "--max-live-parameters", live, "--json"]) == 0
        rows = {row["mode"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
        name = f"{stage}, `max_live_parameters` below" if live == "10M" else str(stage)
        cells = [f"{rows[mode]['times_plain']:.3f}" for mode in ("plain", "exact", "sketched", "features")]
        memory = f"{rows['exact']['memory_bytes'] / 1e6:,.0f}"
        assert f"| {name} | {' | '.join(cells)} | {memory} |" in shown


def test_json(tmp_path, capsys):
    out = tmp_path / "results" / "comm.json"
    words = [
        "bench",
        "comm",
        "--ranks",
        "2",
        "--parameters",
        "1.5k",
        "--method",
        "pcgrad",
        "--bandwidth",
        "1",
    ]
    assert main([*words, "--latency", "0", "--json", "--out", str(out)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads(out.read_text(encoding="utf-8"))
    rows = {row["mode"]: row for row in result["rows"]}
    assert list(rows) == ["plain", "exact", "sketched", "features", "last_layer"]
    assert rows["plain"]["gradient_bytes"] == 6000
    assert rows["plain"]["latency_seconds"] == 0
    assert rows["plain"]["send_seconds"] == rows["plain"]["sent_bytes"] / 1e9


def test_wrong_values(capsys):
    message = fail(["bench", "comm", "--ranks", "8,1"], capsys, 2)
    assert "num_ranks is 1; allowed: 2 or more" in message
    assert "did you mean 'pcgrad'" in fail(["bench", "comm", "--method", "pcgrat"], capsys, 2).lower()
    assert "--features takes one number" in fail(["bench", "comm", "--features", "1,2"], capsys, 2)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--ranks", "8,,64", "expected whole numbers above 0"),
        ("--parameters", "43.9X", "expected whole numbers above 0"),
        ("--parameters", "0.5", "expected whole numbers above 0"),
        ("--bandwidth", "0", "expected a number above 0"),
        ("--latency", "nan", "expected a number of 0 or more"),
        ("--tasks", "0", "expected a whole number above 0"),
        ("--parameter-bytes", "3", "invalid choice: 3"),
    ],
)
def test_wrong_words(option, value, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["bench", "comm", option, value])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err

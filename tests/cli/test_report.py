"""`perception report`: the folders and options it takes, and what it refuses."""

import json
from pathlib import Path

import pytest

from perception.cli.main import main
from tests.visualization.run_folders import TOKENS, config, metrics, sample_scores, write_run


@pytest.fixture
def runs(tmp_path):
    scores = sample_scores((0.5, 0.1, 0.9, 0.3, 0.6, 0.7))
    write_run(tmp_path / "sum", samples=scores, pictures=TOKENS)
    write_run(tmp_path / "pcgrad", cfg=config("pcgrad"), scores=metrics(0.4))
    write_run(tmp_path / "det", cfg=config("det"))
    return tmp_path


def test_several_runs_and_baselines(runs, capsys):
    words = [str(runs / "sum"), str(runs / "pcgrad"), "--single", f"det={runs / 'det'}"]
    assert main(["report", *words, "--out", str(runs / "new" / "page.html")]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path == runs / "new" / "page.html"
    page = path.read_text(encoding="utf-8")
    assert "single-det" in page
    assert "Acc_MTL" in page
    assert main(["report", *words]) == 0
    assert Path(capsys.readouterr().out.strip()) == runs / "report.html"


def test_what_is_refused(runs, tmp_path, capsys):
    one = str(runs / "sum")
    for words, piece in (
        ([str(tmp_path / "nowhere")], "no such run folder"),
        ([one, "--reference", "sun"], "Did you mean 'sum'?"),
        ([one, "--single", "dett=x"], "Did you mean 'det'?"),
        ([one, "--single", f"det={tmp_path / 'nowhere'}"], "no such run folder"),
        ([one, "--out", str(tmp_path)], "is a folder"),
        ([one, "--data-root", "x"], "--draw"),
        ([one, str(runs / "pcgrad"), "--seconds", "setup=1"], "one run"),
        ([one, "--seconds", "setup=x"], "STEP=SECONDS"),
        ([str(runs / "pcgrad"), "--draw", "1"], "perception test RUN"),
    ):
        assert main(["report", *words]) == 2, words
        assert piece in capsys.readouterr().err
    assert not (runs / "sum" / "report.html").exists()
    (runs / "sum" / "metrics.json").write_text("{")
    assert main(["report", one]) == 3
    assert "not JSON" in capsys.readouterr().err


def test_seconds_are_merged(runs, capsys):
    assert main(["report", str(runs / "sum"), "--seconds", "setup=65", "synthesize=1.5"]) == 0
    assert json.loads((runs / "sum" / "summary.json").read_text())["seconds"]["setup"] == 65
    assert "1 min 05 s" in Path(capsys.readouterr().out.strip()).read_text(encoding="utf-8")

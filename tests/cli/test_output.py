"""What verbs print at the end, on one rank and on several."""

import pytest

from perception.cli._output import print_metrics
from perception.cli.main import main

METRICS = {"NDS": 0.25, "mIoU": 0.5, "AP/car": 0.1, "comparable": False}


@pytest.fixture
def finished(monkeypatch, options):
    """Training and evaluation that take no time; and the arguments of a config whose data is there."""
    monkeypatch.setattr("perception.engine.train", lambda cfg, **options: cfg.work_dir)
    monkeypatch.setattr("perception.engine.evaluate", lambda *args, **kwargs: METRICS)
    return options


def test_scores_are_printed_by_the_first_rank_only(capsys, monkeypatch):
    print_metrics(METRICS)
    alone = capsys.readouterr().out
    assert alone.splitlines()[:2] == ["NDS   0.2500", "mIoU  0.5000"]
    assert "not comparable" in alone
    monkeypatch.setenv("RANK", "0")
    print_metrics(METRICS)
    assert capsys.readouterr().out == alone
    monkeypatch.setenv("RANK", "1")
    print_metrics(METRICS)
    assert capsys.readouterr().out == ""


def test_the_last_lines_are_printed_by_the_first_rank_only(finished, capsys, monkeypatch, tmp_path):
    run = str(tmp_path / "run")
    for words in (["train", "bevformer_nano"], ["test", "bevformer_nano", "--untrained"]):
        for rank in ("0", "1"):
            monkeypatch.setenv("RANK", rank)
            assert main([*words, "--work-dir", run, *finished]) == 0
            assert (run in capsys.readouterr().out) == (rank == "0")

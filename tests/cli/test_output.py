"""What verbs print at the end, on one rank and on several."""

import pytest

from perception.cli._output import print_metrics
from perception.cli.main import main

METRICS = {"NDS": 0.25, "mIoU": 0.5, "AP/car": 0.1, "comparable": False}


@pytest.fixture
def finished(monkeypatch, options):
    """Training, evaluation and dry run that take no time; and the arguments of a config whose data is there."""
    monkeypatch.setattr("perception.engine.train", lambda cfg, *, resume: cfg.work_dir)
    monkeypatch.setattr("perception.engine.evaluate", lambda *args, **kwargs: METRICS)
    monkeypatch.setattr("perception.engine.rehearse", lambda cfg: METRICS)
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


@pytest.mark.parametrize("metrics", [METRICS, {}])
def test_a_dry_run_does_not_read_like_a_training(finished, capsys, monkeypatch, tmp_path, metrics):
    monkeypatch.setattr("perception.engine.rehearse", lambda cfg: metrics)
    run = tmp_path / "run"
    assert main(["train", "bevformer_nano", "--dry-run", "--work-dir", str(run), *finished]) == 0
    said = capsys.readouterr().out
    assert said.startswith("dry run passed; no model was trained\n")
    assert "checked: 2 training steps with a save and a resume between them" in said
    assert ("2 evaluation batches (4 metrics)" in said) == bool(metrics)
    assert ("no evaluation" in said) == (not metrics)
    assert f"run folder {run} is as it was" in said
    assert "perception test" not in said
    assert not run.exists()

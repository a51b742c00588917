"""`perception visualize [balance] RUN`: which word means what, and what is refused."""

import json

import pytest

from perception.cli.main import build_parser, main


@pytest.fixture
def run_folder(tmp_path):
    """A run folder that holds a log and nothing else."""
    folder = tmp_path / "run"
    folder.mkdir()
    lines = [{"kind": "train", "step": s, "balance": {"cosines": {"a/b": 0.1 * s}}} for s in range(-3, 4)]
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("words", "expected"),
    [(["run"], (None, "run")), (["balance", "run"], ("balance", "run")), (["balance"], (None, "balance"))],
)
def test_the_words(words, expected):
    args = build_parser().parse_args(["visualize", *words])
    assert (args.what, args.run_folder) == expected


def test_a_misspelt_word_gets_the_right_one(capsys):
    with pytest.raises(SystemExit, match="2"):
        build_parser().parse_args(["visualize", "balanec", "run"])
    assert "balance" in capsys.readouterr().err.split("mean")[1]


def test_the_picture_lies_in_the_run_or_in_out(run_folder, tmp_path, capsys):
    assert main(["visualize", "balance", str(run_folder)]) == 0
    assert capsys.readouterr().out == f"{run_folder / 'balance.png'}\n"
    assert main(["visualize", "balance", str(run_folder), "--out", str(tmp_path / "other")]) == 0
    assert (run_folder / "balance.png").read_bytes() == (tmp_path / "other" / "balance.png").read_bytes()


def test_what_is_refused(run_folder, tmp_path, capsys):
    for option in (["--num", "3"], ["--score-threshold", "0"], ["--data-root", "x"], ["--set", "a=1"]):
        assert main(["visualize", "balance", str(run_folder), *option]) == 2
        assert option[0] in capsys.readouterr().err
    assert main(["visualize", "balance", str(tmp_path)]) == 2
    assert "no log.jsonl" in capsys.readouterr().err
    (run_folder / "log.jsonl").write_text('{"kind": "train", "step": 1, "balance": {}}\n', encoding="utf-8")
    assert main(["visualize", "balance", str(run_folder)]) == 1
    assert "--set optim_wrapper.watch.gram_interval=100" in capsys.readouterr().err
    assert not (run_folder / "balance.png").exists()

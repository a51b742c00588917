"""`perception compare`: what it refuses before training, and its exit codes."""

from pathlib import Path
from typing import Any

import pytest
from mmengine.optim import LinearLR

from perception.cli import compare as verb
from perception.cli.main import main
from tests.engine import toy_world


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Words of a command whose config is the toy world's."""

    def load(name: str, args: Any, **options: Any) -> Any:
        schedule = [dict(type=LinearLR, start_factor=0.1, by_epoch=False, begin=0, end=1)]
        short = {"train_cfg__max_iters": 2, "train_cfg__val_interval": 2, "param_scheduler": schedule}
        return toy_world.config("unused", **short)

    monkeypatch.setattr(verb, "load_checked", load)
    return [
        "compare",
        "bevformer_nano",
        "--work-dir",
        str(tmp_path / "out"),
        "--scores",
        "det=mIoU,seg=count",
    ]


def test_refused_before_training(toy: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for words, message in (
        ([], "no balancer"),
        (["--balancers", "sum,pcgard"], "Did you mean 'pcgrad'"),
        (["--balancers", "amtl"], "potentials"),
        (["--balancers", "sum,pcgrad", "--reference", "pcgard"], "Did you mean 'pcgrad'"),
        (["--balancers", "sum", "--single", "dte=x"], "Did you mean 'det'"),
        (["--balancers-file", str(tmp_path / "none.json")], "cannot be read"),
    ):
        assert main([*toy, *words]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_more_than_one_rank(
    toy: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([*toy, "--balancers", "sum"]) == 2
    assert "one process" in capsys.readouterr().err


def test_exit_codes(
    toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    words = [*toy, "--balancers", "sum,pcgrad", "--seeds", "1"]
    from perception.engine import compare as engine

    real = engine.train

    def train(cfg: Any, **options: Any) -> Any:
        if cfg.optim_wrapper["balancer"] == "pcgrad":
            raise FloatingPointError("not finite")
        return real(cfg, **options)

    monkeypatch.setattr(engine, "train", train)
    assert main(words) == 1
    out = capsys.readouterr().out
    assert "| sum |" in out
    assert "pcgrad seed 0: FloatingPointError: not finite" in out
    monkeypatch.setattr(engine, "train", real)
    assert main(words) == 0
    assert "| pcgrad |" in capsys.readouterr().out
    assert (tmp_path / "out" / "compare.json").is_file()

"""The tutorial's commands, run one after the other as a reader would, on a world and for runs that are much smaller."""

import shlex
from pathlib import Path

import pytest

from perception.cli.main import main
from tests.docs.blocks import blocks

SMALLER = {"--scenes 10": "--scenes 2 --samples-per-scene 3"}
SHORTER = (
    "train_dataloader.sampler.samples_per_epoch=2 train_dataloader.num_workers=0 val_dataloader.num_workers=0 "
    "test_dataloader.num_workers=0 train_cfg.max_epochs=1 train_cfg.val_interval=1 param_scheduler.0.end=2 "
    "param_scheduler.1.T_max=1 param_scheduler.1.end=1"
)


def commands() -> list[str]:
    """The page's `perception ...` lines, in order."""
    text = "".join(block.text for block in blocks("") if block.place.startswith("docs/first_hour.md"))
    lines = text.replace("\\\n", " ").splitlines()
    return [line.partition("  #")[0].strip() for line in lines if line.startswith("perception ")]


def test_the_page_shows_the_whole_way():
    verbs = [command.split()[1] for command in commands()]
    assert {"data", "check", "browse", "train", "test", "visualize", "report"} <= set(verbs)


@pytest.mark.slow
def test_every_command_runs(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for command in commands():
        for whole, smaller in SMALLER.items():
            command = command.replace(whole, smaller)
        words = shlex.split(command)[1:]
        if words[0] == "train":
            words += ["--set", *SHORTER.split()]
        assert main(words) == 0, (command, capfd.readouterr().err[-3000:])
    assert list(Path("pictures").iterdir())
    assert (Path("work_dirs") / "first" / "report.html").is_file()

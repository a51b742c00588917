"""Runs put together: seeds, comparison folders, single-task baselines, names, and what is no run."""

import json

import pytest

from perception.utils import DataError
from perception.visualization import find_runs, read_groups
from perception.visualization.comparability import warnings_of
from perception.visualization.run_log import RunLog
from tests.visualization.run_folders import config, log, metrics, write_run


def labels(groups):
    return [(group.label, len(group.runs), group.task) for group in groups]


def test_a_comparison_folder_is_its_methods_with_their_seeds(tmp_path):
    for name in ("pcgrad", "sum"):
        for seed in (0, 1):
            write_run(tmp_path / name / f"seed{seed}", scores=metrics(0.2 + 0.2 * seed))
    write_run(tmp_path / "single-det" / "seed0")
    (tmp_path / "compare.json").write_text("{}")
    groups = read_groups([tmp_path])
    assert labels(groups) == [("sum", 2, None), ("pcgrad", 2, None), ("single-det", 1, "det")]
    score = groups[0].over_seeds("NDS")
    assert (score.mean, score.error, score.num) == (pytest.approx(0.3), pytest.approx(0.1), 2)
    assert labels(read_groups([tmp_path / "pcgrad", tmp_path / "pcgrad" / "seed1"])) == [("pcgrad", 2, None)]


def test_runs_of_one_config_with_other_seeds_are_one_row(tmp_path):
    for name, cfg in (("a", config(seed=0)), ("b", config(seed=1)), ("c", config("pcgrad", seed=1))):
        write_run(tmp_path / name, cfg=cfg)
    write_run(tmp_path / "again", cfg=config(seed=0))
    groups = read_groups([tmp_path / name for name in ("a", "b", "c", "again")])
    assert labels(groups) == [("a", 2, None), ("c", 1, None), ("again", 1, None)]
    assert [group.colour for group in groups] == [0, 1, 2]


def test_singles_come_last_and_names_tell_apart(tmp_path):
    write_run(tmp_path / "x" / "run")
    write_run(tmp_path / "y" / "run", cfg=config("pcgrad"))
    write_run(tmp_path / "det", cfg=config("det"))
    groups = read_groups([tmp_path / "x/run", tmp_path / "y/run"], singles={"det": tmp_path / "det"})
    assert labels(groups) == [("x/run", 1, None), ("y/run", 1, None), ("single-det", 1, "det")]


def test_what_is_no_run_is_said_with_the_remedy(tmp_path):
    with pytest.raises(DataError, match="no such run folder"):
        find_runs(tmp_path / "nowhere")
    (tmp_path / "empty" / "inner").mkdir(parents=True)
    with pytest.raises(DataError, match=r"no run folder.*nor does it hold run folders"):
        find_runs(tmp_path / "empty")


def test_without_metrics_the_last_evaluation_of_the_log_counts(tmp_path):
    write_run(tmp_path / "run", scores={})
    (group,) = read_groups([tmp_path / "run"])
    assert group.over_seeds("NDS").mean == pytest.approx(0.3)
    assert any("the last evaluation in the log" in note for note in group.first.summary.missing)


def test_a_damaged_log_is_read_up_to_its_damage(tmp_path):
    lines = [json.dumps(line) + "\n" for line in log(20)]
    path = tmp_path / "log.jsonl"
    path.write_text("".join(lines[:8]) + '{"kind": "train", "st\n' + "".join(lines[8:]))
    found = RunLog.read(path)
    assert found.last_step == 7.0
    assert len(found.losses["loss"]) == 7
    assert [
        note for note in found.notes if "line 9 is not JSON" in note and "left out" in note
    ] == found.notes
    path.write_text("".join(lines)[:-20])  # a killed run's last line is cut short
    assert RunLog.read(path).notes == []
    path.write_text("")
    assert "no training step" in RunLog.read(path).notes[0]
    path.write_bytes(b"\xff\xfe\x00")
    assert "left out" in RunLog.read(path).notes[0]


def test_other_data_tasks_and_lengths_are_said(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", cfg=config("pcgrad"))
    groups = read_groups([tmp_path / "a", tmp_path / "b"])
    assert warnings_of(groups, groups[0]) == []
    write_run(tmp_path / "c", cfg=config(ann_file="index/val.json"), lines=log(20, tasks=("det", "seg")))
    write_run(tmp_path / "d", cfg={}, scores={**metrics(), "comparable": False})
    groups = read_groups([tmp_path / name for name in "abcd"])
    text = " ".join(warnings_of(groups, groups[0]))
    for piece in (
        "scored on different data: a, b on nuscenes mini_val.json; c on nuscenes val.json",
        "What d was scored on is not known",
        "different tasks (a, b, d: box, cls, seg, velocity; c: det, seg)",
        "numbers of steps: a 40, b 40, c 20, d 40",
        "scores of d are of a subset",
    ):
        assert piece in text

"""Planning and running a comparison in the toy world."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import toy_world
from mmengine.optim import LinearLR

from perception.config import ConfigError
from perception.engine import PerceptionRunner, read_log
from perception.engine import compare as compare_module
from perception.engine.compare import compare, find_single_runs
from perception.engine.compare_plan import (
    PlannedRun,
    fill_potentials,
    plan_runs,
    read_balancers,
    read_pairs,
    read_scores,
)
from perception.engine.compare_scores import RunScores, comparison_page, describe_group, read_run, score_group

SCORES = {"det": ("mIoU",), "seg": ("count",)}


def toy(**changes: Any) -> Any:
    schedule = [dict(type=LinearLR, start_factor=0.1, by_epoch=False, begin=0, end=2)]
    short = {"train_cfg__max_iters": 4, "train_cfg__val_interval": 4, "param_scheduler": schedule}
    return toy_world.config("unused", **short, **changes)


def start(runs: list[PlannedRun], root: Path, **options: Any) -> dict[str, Any]:
    return compare(
        runs, work_dir=root, config="toy", command="perception compare toy", scores=SCORES, **options
    )


def test_order_and_folders(tmp_path: Path) -> None:
    runs = plan_runs(
        toy(), read_balancers(["sum", "pcgrad"]), num_seeds=2, work_dir=tmp_path, singles={"det": toy()}
    )
    assert [(run.group, run.seed) for run in runs] == [
        ("single-det", 0), ("single-det", 1), ("sum", 0), ("pcgrad", 0), ("sum", 1), ("pcgrad", 1)
    ]  # fmt: skip
    last = runs[-1]
    assert last.folder == tmp_path / "pcgrad" / "seed1"
    assert last.cfg.randomness["seed"] == 1
    assert last.cfg.optim_wrapper["balancer"] == "pcgrad"
    assert last.num_steps == 4
    assert "balancer" not in runs[0].cfg.optim_wrapper
    assert not list(tmp_path.iterdir())


def test_all_problems_are_told_before_training(tmp_path: Path) -> None:
    specs = {
        "typo": "pcgard",
        "bare": "amtl",
        "elsewhere": {"name": "constant", "weights": {"det": 1.0, "depth": 1.0}},
        "fine": "mgda",
    }
    with pytest.raises(ConfigError) as error:
        plan_runs(toy(val_dataloader=None), specs, num_seeds=1, work_dir=tmp_path, singles={"seg": toy()})
    assert "no evaluation at its end" in str(error.value)
    with pytest.raises(ConfigError) as error:
        plan_runs(toy(), specs, num_seeds=1, work_dir=tmp_path)
    text = str(error.value)
    assert "'typo'" in text
    assert "Did you mean 'pcgrad'" in text
    assert "'bare'" in text
    assert "potentials" in text
    assert "'elsewhere'" in text
    assert "'fine'" not in text
    assert not list(tmp_path.iterdir())


def test_a_source_of_gradients_is_left_out_where_nothing_compares_them(tmp_path: Path) -> None:
    cfg = toy(optim_wrapper__interval=2)
    runs = plan_runs(cfg, {"sum": "sum", "pcgrad": "pcgrad"}, num_seeds=1, work_dir=tmp_path)
    assert [run.cfg.optim_wrapper.get("interval") for run in runs] == [None, 2]


def test_balancers_with_arguments(tmp_path: Path) -> None:
    path = tmp_path / "balancers.json"
    path.write_text(json.dumps({"cagrad-0.2": {"name": "cagrad", "c": 0.2}}))
    assert read_balancers(["sum"], path) == {"sum": "sum", "cagrad-0.2": {"name": "cagrad", "c": 0.2}}
    for names, content, message in (
        (["sum", "sum"], "{}", "twice"),
        ([], "{}", "no balancer"),
        ([], "[1]", "an object of labels"),
        ([], "{", "cannot be read"),
        (["a/b"], "{}", "folder's name"),
        (["single-det"], "{}", "folder's name"),
    ):
        path.write_text(content)
        with pytest.raises(ConfigError, match=message):
            read_balancers(names, path)


def test_options() -> None:
    assert read_scores("det=NDS+mAP,seg=mIoU") == {"det": ("NDS", "mAP"), "seg": ("mIoU",)}
    assert read_pairs("", "--single") == {}
    with pytest.raises(ConfigError, match="Did you mean 'seg'"):
        read_pairs("sge=x", "--single", ["det", "seg"])
    for text in ("det", "det=", "=x", "det=a,det=b"):
        with pytest.raises(ConfigError, match="NAME=VALUE"):
            read_pairs(text, "--single")


def test_a_comparison_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = {"sum": "sum", "pcgrad": "pcgrad"}

    def plan(**options: Any) -> list[PlannedRun]:
        return plan_runs(toy(**options), specs, num_seeds=1, work_dir=tmp_path, singles={"det": toy()})

    half = plan()[1]
    PerceptionRunner.from_cfg(half.cfg).train(stop_after=2)
    assert read_run(half.folder, num_steps=4) is None
    real_train, trained = compare_module.train, []

    def train(cfg: Any, **options: Any) -> Any:
        trained.append(Path(cfg.work_dir).parent.name)
        if trained[-1] == "pcgrad" and trained.count("pcgrad") == 1:
            raise MemoryError("no room")
        return real_train(cfg, **options)

    monkeypatch.setattr(compare_module, "train", train)
    first = start(plan(), tmp_path)
    assert trained == ["single-det", "sum", "pcgrad"]
    assert first["failed"] == ["pcgrad seed 0: MemoryError: no room"]
    assert set(first["balancers"]) == {"sum"}
    steps = [line["step"] for line in read_log(half.folder / "log.jsonl") if line["kind"] == "train"]
    assert steps == [1, 2, 3, 4]

    trained.clear()
    read = start(plan(), tmp_path, is_reading_only=True)
    assert trained == []
    assert read["unfinished"] == ["pcgrad seed 0"]
    assert read["balancers"] == first["balancers"]

    trained.append("pcgrad")  # the second one succeeds
    second = start(plan(), tmp_path)
    assert trained == ["pcgrad", "pcgrad"]
    assert second["failed"] == second["unfinished"] == []
    assert second["balancers"]["sum"] == first["balancers"]["sum"]
    assert 0 <= second["balancers"]["pcgrad"]["conflict_share"]["mean"] <= 1
    assert list(second["balancers"]["pcgrad"]["runs"]["0"]["cosines"]) == ["det/seg"]
    assert second["balancers"]["sum"]["conflict_share"] is None

    written = json.loads((tmp_path / "compare.json").read_text())
    assert written == second
    page = (tmp_path / "compare.md").read_text()
    assert "| pcgrad |" in page
    assert "| single det |" in page
    # The toy's single-task run is the sum itself with another data order: its own metrics are the oracle.
    single = written["single"]["det"]["runs"]["0"]["metrics"]["mIoU"]
    found = written["balancers"]["pcgrad"]["runs"]["0"]["metrics"]["mIoU"]
    assert written["balancers"]["pcgrad"]["delta_m_drop"]["mean"] == pytest.approx((single - found) / single)

    assert set(find_single_runs(tmp_path / "single-det") or ()) == {"seed0"}
    assert set(find_single_runs(tmp_path / "single-det" / "seed0") or ()) == {"seed0"}
    assert find_single_runs("bevformer_nano_det") is None
    with pytest.raises(ConfigError, match="another config"):
        plan(model__width=4)


def test_potentials_of_single_task_runs() -> None:
    class Model:
        kpi_metrics = {"cls": ("mAP",), "box": ("mATE", "mASE"), "seg": ("mIoU",)}

    metrics = {"mAP": 0.2, "mATE": 0.8, "mASE": 0.4, "mIoU": 0.3, "NDS": 0.1}
    filled = fill_potentials("amtl", Model(), metrics)
    potentials = {"cls": 0.2, "box": pytest.approx(0.6), "seg": 0.3}
    assert filled == {"name": "amtl", "potentials": potentials, "lower_is_better": ["box"]}
    assert fill_potentials({"name": "achievement+pcgrad"}, Model(), metrics)["potentials"] == potentials  # type: ignore[index]
    own = {"name": "amtl", "potentials": {"cls": 1.0}}
    assert fill_potentials(own, Model(), metrics) == own
    assert fill_potentials("dtp+geometric", Model(), metrics) == {**filled, "name": "dtp+geometric"}
    assert fill_potentials("pcgrad", Model(), metrics) == "pcgrad"
    assert fill_potentials("amtl", Model(), {"mAP": 0.2}) == "amtl"


def scores(**metrics: float) -> RunScores:
    return RunScores(
        metrics=metrics, steps=1, seconds=2.0, conflict_share=None, group_conflict_share=None, cosines={}
    )


def test_scores_by_hand() -> None:
    """wPCGrad's Table 1: PCGrad's 0.329 and 0.345 against 0.323 and 0.385."""
    singles = {"det": {0: scores(NDS=0.323)}, "seg": {0: scores(mIoU=0.385)}}
    runs = {0: scores(NDS=0.329, mIoU=0.345), 1: scores(NDS=0.329, mIoU=0.345)}
    notes: list[str] = []
    row = score_group(runs, singles, {"det": ("NDS",), "seg": ("mIoU",)}, notes)
    gain = (0.329 / 0.323 + 0.345 / 0.385) / 2 - 1
    assert row["delta_m_gain"]["mean"] == pytest.approx(gain)
    assert row["delta_m_drop"]["mean"] == pytest.approx(-gain)
    assert row["delta_m_gain"]["standard_error"] == 0
    assert row["acc_mtl"]["mean"] == pytest.approx((0.329 * 0.345) ** 0.5)
    assert notes == []


def test_scores_lower_is_better_and_missing_ones() -> None:
    singles = {"det": {0: scores(mAVE=0.5)}, "seg": {0: scores(mIoU=0.0)}}
    notes: list[str] = []
    row = score_group({0: scores(mAVE=0.4)}, singles, {"det": ("mAVE",), "seg": ("mIoU",)}, notes)
    assert row["delta_m_gain"]["mean"] == pytest.approx(0.2)
    assert row["acc_mtl"]["mean"] == pytest.approx(2.5)
    assert len(notes) == 1
    assert "no mIoU" in notes[0]
    row = score_group({0: scores(mIoU=0.4)}, singles, {"seg": ("mIoU",)}, notes)
    assert row["delta_m_gain"] is None
    assert "is 0" in notes[1]


def test_conflicts_of_channel_groups_have_a_column_where_there_are_any() -> None:
    def page(**shares: float) -> str:
        run = dataclasses.replace(scores(NDS=0.3), **shares)
        row = {**describe_group({0: run}), "delta_m_drop": None, "delta_m_gain": None, "acc_mtl": None}
        return comparison_page(
            {"config": "c", "command": "x", "scores": {}, "single": {}, "balancers": {"a": row},
             "failed": [], "unfinished": [], "notes": []}
        )  # fmt: skip

    assert "| conflict share | of channel groups | train s |" in page(group_conflict_share=0.25)
    assert "| 0.250 | 2 |" in page(group_conflict_share=0.25)
    assert "of channel groups" not in page(conflict_share=0.5)


def test_percentages_against_one_balancer() -> None:
    """wPCGrad's Table 2: 0.341 against PCGrad's 0.329 is +3.6 %."""
    rows = {
        label: {**describe_group({0: scores(NDS=value)}), "delta_m_drop": None, "delta_m_gain": None, "acc_mtl": None}
        for label, value in (("pcgrad", 0.329), ("seg-vel", 0.341), ("sum", 0.317))
    }  # fmt: skip
    page = comparison_page(
        {"config": "c", "command": "x", "scores": {}, "single": {}, "balancers": rows, "failed": [], "unfinished": [],
         "notes": [], "reference": "pcgrad"}
    )  # fmt: skip
    assert "| seg-vel | 0.3410 (+3.6%) |" in page
    assert "| sum | 0.3170 (-3.6%) |" in page
    assert "| pcgrad | 0.3290 |" in page
    assert "Percentages are against pcgrad" in page


def test_page_without_scores() -> None:
    empty = {"config": "c", "command": "x", "scores": {}, "single": {}, "balancers": {}, "failed": ["a"],
             "unfinished": ["b"], "notes": ["n"]}  # fmt: skip
    page = comparison_page(empty)
    assert "Failed:\n- a" in page
    assert "Not finished:\n- b" in page

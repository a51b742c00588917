"""Single-task models, pseudo labels and balancers of the small image model, in one comparison; and its scores."""

import json
from pathlib import Path
from typing import Any

import pytest

from perception.config import ConfigError
from perception.datasets import prepare_bdd100k
from perception.engine import compare as compare_module
from perception.engine import evaluate
from perception.engine.compare import compare, find_single_runs
from perception.engine.compare_plan import PlannedRun, find_teachers, plan_runs
from perception.engine.compare_table import PaperTable
from perception.evaluation import list_masks, read_image_boxes
from tests.engine.pseudo_world import fcos_config

pytestmark = pytest.mark.slow  # four runs, though of two steps

PLAN = Path(__file__).resolve().parents[2] / "projects" / "mclgs" / "table4.json"
WEIGHTS = {"gt": 0.8, "pseudo": 0.2}


@pytest.fixture(scope="module")
def index(bdd100k_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bdd100k index")
    prepare_bdd100k(bdd100k_root, out=out, progress=False)
    return out


def plan(root: Path, index: Path, work_dir: Path, **options: Any) -> list[PlannedRun]:
    cfg = fcos_config(root, index, model__label_weights=WEIGHTS, model__task_weights={"det": 1.7, "seg": 0.3})
    singles = {task: fcos_config(root, index, heads=(task,)) for task in ("det", "seg")}
    balancers = PaperTable.read(PLAN).choose(["sum", "mclgs"])
    return plan_runs(
        cfg,
        balancers,
        work_dir=work_dir,
        **{"num_seeds": 1, "singles": singles, "use_pseudo_labels": True, **options},
    )


@pytest.fixture(scope="module")
def finished(
    bdd100k_root: Path, index: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A finished comparison of one seed, two steps a run."""
    work_dir = tmp_path_factory.mktemp("compare")
    runs = plan(bdd100k_root, index, work_dir)
    table = PaperTable.read(PLAN)
    result = compare(
        runs, work_dir=work_dir, config="small", command="perception", scores=table.scores, table=table
    )
    return work_dir, result


def test_teachers_label_before_the_first_student(finished: tuple[Path, dict[str, Any]]) -> None:
    work_dir, result = finished
    assert result["failed"] == result["unfinished"] == []
    assert set(result["single"]) == {"det", "seg"}
    assert list(result["balancers"]) == ["sum", "mclgs"]
    manifest = json.loads((work_dir / "pseudo" / "seed0" / "pseudo_labels.json").read_text())["tasks"]
    assert all(task["is_complete"] and task["num_images"] == 8 for task in manifest.values())
    config = json.loads((work_dir / "mclgs" / "seed0" / "config.json").read_text())
    assert config["train_dataloader"]["dataset"]["pseudo_labels"] == str(work_dir / "pseudo" / "seed0")
    log = [json.loads(line) for line in (work_dir / "mclgs" / "seed0" / "log.jsonl").read_text().splitlines()]
    terms = {name for line in log if line["kind"] == "train" for name in line["losses"]}
    assert {"det.pseudo.loss_focal", "det.gt.loss_focal", "seg.gt.loss_ce"} <= terms
    page = (work_dir / "compare.md").read_text()
    assert "## MCLGS, Table 4" in page
    sizes = result["parameters"]
    share = sizes["mclgs"] / ((sizes["single det"] + sizes["single seg"]) / 2)
    assert 1 < share < 2
    (row,) = (line for line in page.splitlines() if line.startswith("| MCLGS |"))
    assert row.startswith(f"| MCLGS | {share:.2f} | 1.15 |")


def test_the_same_command_trains_nothing_again(
    finished: tuple[Path, dict[str, Any]], bdd100k_root: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_dir, result = finished

    def train(*args: Any, **options: Any) -> None:
        raise AssertionError("everything is finished")

    monkeypatch.setattr(compare_module, "train", train)
    table = PaperTable.read(PLAN)
    runs = plan(bdd100k_root, index, work_dir)
    again = compare(
        runs, work_dir=work_dir, config="small", command="perception", scores=table.scores, table=table
    )
    assert again["balancers"] == result["balancers"]


def test_finished_single_runs_are_teachers_and_baselines(
    finished: tuple[Path, dict[str, Any]], bdd100k_root: Path, index: Path, tmp_path: Path
) -> None:
    work_dir, result = finished
    folders = {task: work_dir / f"single-{task}" for task in ("det", "seg")}
    runs = plan(bdd100k_root, index, tmp_path, singles={})
    teachers = find_teachers(runs, folders, seed=0)
    assert [teacher.tasks for teacher in teachers] == [("det",), ("seg",)]
    read = compare(
        runs,
        work_dir=tmp_path,
        config="small",
        command="perception",
        singles={task: find_single_runs(folder) or {} for task, folder in folders.items()},
        single_folders=folders,
        is_reading_only=True,
    )
    assert read["parameters"] == {key: result["parameters"][key] for key in ("single det", "single seg")}
    with pytest.raises(ConfigError, match="need single-task models as teachers"):
        find_teachers(runs, {}, seed=0)


def test_pseudo_labels_need_a_weight(bdd100k_root: Path, index: Path, tmp_path: Path) -> None:
    cfg = fcos_config(bdd100k_root, index)
    with pytest.raises(ConfigError, match="model.label_weights"):
        plan_runs(cfg, {"sum": "sum"}, num_seeds=1, work_dir=tmp_path, use_pseudo_labels=True)


def test_a_run_is_scored_by_both_evaluators_and_writes_its_predictions(
    finished: tuple[Path, dict[str, Any]], bdd100k_root: Path, index: Path, tmp_path: Path
) -> None:
    folder = finished[0] / "sum" / "seed0"
    cfg = fcos_config(bdd100k_root, index, model__label_weights=WEIGHTS)
    scores = {}
    for evaluator in ("fast", "official"):
        own = fcos_config(bdd100k_root, index, model__label_weights=WEIGHTS)
        own.work_dir = str(tmp_path / evaluator)
        for metric in own.val_evaluator:
            metric["evaluator"] = evaluator
        scores[evaluator] = evaluate(own, folder)
    assert (scores["fast"]["num_det_frames"], scores["fast"]["num_seg_frames"]) == (4, 4)
    for name, value in scores["fast"].items():
        assert scores["official"][name] == pytest.approx(value, abs=1e-11), name
    cfg.work_dir = str(tmp_path / "written")
    assert evaluate(cfg, folder, submission=tmp_path / "submission") == {}
    assert len(read_image_boxes(tmp_path / "submission" / "det.json")) == 8
    assert len(list_masks(tmp_path / "submission" / "sem_seg")) == 8
    assert not (tmp_path / "written" / "metrics.json").exists()

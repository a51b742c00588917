"""Δm and Acc_MTL of the report: the numbers of `compare`, and what has none."""

import pytest

from perception.engine.report_scores import score_groups
from perception.evaluation import acc_mtl, delta_m
from perception.visualization import read_groups
from tests.visualization.run_folders import config, metrics, write_run


def write(folder, name, score, miou, seed=0):
    scores = {key: value for key, value in metrics(score or 0.0, miou or 0.0).items()}
    for key, value in (("NDS", score), ("mIoU", miou)):
        if value is None:
            del scores[key]
    write_run(folder / name / f"seed{seed}", cfg=config(name, seed=seed), scores=scores, lines=[])


@pytest.fixture
def folder(tmp_path):
    for name, score, miou, seed in (
        ("sum", 0.2, 0.4, 0),
        ("sum", 0.3, 0.4, 1),
        ("pcgrad", 0.4, 0.5, 0),
        ("single-det", 0.4, None, 0),
        ("single-seg", None, 0.5, 0),
    ):
        write(tmp_path, name, score, miou, seed)
    return tmp_path


def test_they_are_those_of_the_evaluation(folder):
    notes = []
    found = score_groups(read_groups([folder]), notes)
    assert set(found) == {"sum", "pcgrad"}
    single = {"det": {"NDS": 0.4}, "seg": {"mIoU": 0.5}}
    drops = [delta_m({"det": {"NDS": score}, "seg": {"mIoU": 0.4}}, single) for score in (0.2, 0.3)]
    assert found["sum"]["delta_m_drop"]["mean"] == pytest.approx(sum(drops) / 2)
    assert found["sum"]["delta_m_gain"]["mean"] == pytest.approx(-sum(drops) / 2)
    assert found["sum"]["delta_m_drop"]["num_seeds"] == 2
    assert found["pcgrad"]["delta_m_drop"]["mean"] == pytest.approx(0.0)
    expected = acc_mtl({"det": {"NDS": 0.4}, "seg": {"mIoU": 0.5}})
    assert found["pcgrad"]["acc_mtl"]["mean"] == pytest.approx(expected)
    assert notes == []


def test_without_single_runs_there_is_acc_mtl_alone(folder):
    found = score_groups(read_groups([folder / "sum"]), [])
    assert found["sum"]["delta_m_drop"] is None
    assert found["sum"]["acc_mtl"] is not None


def test_a_run_of_one_task_has_neither(folder):
    write(folder, "only-det", 0.3, None)
    assert score_groups(read_groups([folder / "only-det"]), []) == {}


def test_other_metrics_can_count(folder):
    notes = []
    scores = {"det": ("mAP",), "seg": ("mIoU",)}
    found = score_groups(read_groups([folder]), notes, scores=scores)
    single = {"det": {"mAP": 0.2}, "seg": {"mIoU": 0.5}}
    assert found["pcgrad"]["delta_m_drop"]["mean"] == pytest.approx(
        delta_m({"det": {"mAP": 0.2}, "seg": {"mIoU": 0.5}}, single)
    )

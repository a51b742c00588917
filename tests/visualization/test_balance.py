"""The balancing picture: the series are those of the log, every row has its data, absent rows are absent."""

import json

import cv2
import numpy as np
import pytest

from perception.visualization import plot_balance
from perception.visualization.balance import _rows
from perception.visualization.balance_records import BalanceRecords
from perception.visualization.log_records import loss_series, score_series

TASKS = ("cls", "box", "seg")
PAIRS = ("cls/box", "cls/seg", "box/seg")


def line(step, **balance):
    return {"kind": "train", "step": step, "epoch": 1 + (step - 1) // 10, "loss": 1.0, "balance": balance}


def method_line(step, is_conflict, **more):
    """A line as wPCGrad writes it; cls and seg in conflict or not."""
    return line(
        step,
        weights=dict.fromkeys(TASKS, 1.0),
        coefficients={"cls": 1.0, "box": 1.5, "seg": 2.0},
        grad_norms={"cls": 10.0 / step, "box": 1.0, "seg": 0.01},
        cosines=dict(zip(PAIRS, (0.25, -0.5 if is_conflict else 0.5, 0.0), strict=True)),
        conflict_share=is_conflict / 3,
        WPCGradWeighting={
            "order": ["seg", "box", "cls"],
            "projected": [["cls", "seg"]] if is_conflict else [],
            "priorities": {"cls": 0.2, "box": 0.3, "seg": 0.5},
        },
        **more,
    )


@pytest.fixture
def records():
    lines = [method_line(step, step % 4 == 0) for step in range(1, 41)]
    return [
        {"kind": "event", "event": "start", "step": 0},
        *lines,
        {"kind": "val", "step": 40, "metrics": {}},
    ]


def write(folder, records):
    folder.mkdir(exist_ok=True)
    path = folder / "log.jsonl"
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return path


def test_the_series_are_those_of_the_log(records):
    found = BalanceRecords.from_log(records)
    assert (found.first_step, found.last_step) == (1.0, 40.0)
    assert found.epochs == [(1, 1.0), (2, 11.0), (3, 21.0), (4, 31.0)]
    assert list(found.cosines) == list(PAIRS)
    assert found.cosines["cls/seg"][2:4] == [(3.0, 0.5), (4.0, -0.5)]
    assert [value for _, value in found.conflict_share] == pytest.approx([0, 0, 0, 1 / 3] * 10)
    assert list(found.projected) == ["cls → seg"]
    assert [step for step, value in found.projected["cls → seg"] if value] == list(range(4, 41, 4))
    assert len(found.projected["cls → seg"]) == 40
    assert list(found.rows) == ["weights", "coefficients", "grad_norms", "priorities"]
    assert found.rows["grad_norms"]["cls"][3] == (4.0, 2.5)
    assert found.tasks() == list(TASKS)
    assert found.components == ["WPCGradWeighting"]


def test_an_update_that_reuses_coefficients_projects_nothing():
    reused = line(5, WPCGradWeighting={"projected": [["cls", "seg"]], "priorities": {"cls": 0.5, "seg": 0.5}})
    found = BalanceRecords.from_log([method_line(4, True), reused])
    assert found.projected == {"cls → seg": [(4.0, 1.0)]}
    assert found.rows["priorities"]["seg"] == [(4.0, 0.5), (5.0, 0.5)]


def test_phases_single_numbers_and_what_is_no_number():
    lines = [
        line(1, phase="sequential", MCLGSWeighting={"pacing": 40.0}, top_share={"det": 0.5, "seg": 0.5}),
        line(2, phase="sequential", MCLGSWeighting={"pacing": 39.0}, group_conflict_share=None),
        line(3, phase="grouped", GradVacWeighting={"targets": [[0.0, 1.0], [1.0, 0.0]]}, conflict_share=None),
        line(4, cosines={"det/seg": float("nan")}),
        {"kind": "train", "step": 5, "loss": 1.0, "skipped": True},
    ]
    found = BalanceRecords.from_log(lines)
    assert found.phases == [(1.0, 2.0, "sequential"), (3.0, 3.0, "grouped")]
    assert found.rows == {
        "pacing": {"": [(1.0, 40.0), (2.0, 39.0)]},
        "top_share": {"det": [(1.0, 0.5)], "seg": [(1.0, 0.5)]},
    }
    assert found.cosines == {}
    assert found.conflict_share == []
    assert found.last_step == 5.0


def test_only_what_is_there_gets_a_row(records):
    # Cosines, share, projections, coefficients, norms, priorities; the weights are all 1.
    assert len(_rows(BalanceRecords.from_log(records))) == 6
    watched = [line(step, cosines={"a/b": 0.5}, conflict_share=0.0) for step in range(1, 100, 20)]
    assert len(_rows(BalanceRecords.from_log(watched))) == 2
    weighed = [line(step, weights={"a": 0.5, "b": 1.5}) for step in (1, 2)]
    assert len(_rows(BalanceRecords.from_log(weighed))) == 1


def test_the_picture_shows_conflict_red_and_agreement_blue(tmp_path):
    # First half in conflict, second half not.
    lines = [line(step, cosines={"a/b": -0.8 if step <= 20 else 0.8}) for step in range(1, 41)]
    path = plot_balance(write(tmp_path / "run", lines), tmp_path / "new" / "balance.png")
    image = cv2.imread(str(path)).astype(int)
    is_red = (image[..., 2] - image[..., 0]) > 60
    is_blue = (image[..., 0] - image[..., 2]) > 60
    width = image.shape[1]
    columns = [np.median(np.nonzero(mask)[1]) / width for mask in (is_red, is_blue)]
    assert columns[0] < 0.45 < columns[1]
    assert 0.8 < is_red.sum() / is_blue.sum() < 1.25


def test_one_update_and_every_row_can_be_drawn(tmp_path):
    one = [method_line(7, True, phase="grouped", top_share={"det": 0.4, "seg": 0.6}, GradNorm={"x": -1.0})]
    path = plot_balance(write(tmp_path, one), tmp_path / "balance.png")
    height, width = cv2.imread(str(path)).shape[:2]
    assert width > 1000
    assert height > 700


@pytest.mark.parametrize("lines", [[], [line(1), line(2)], [{"kind": "val", "step": 1, "metrics": {}}]])
def test_a_log_without_balancing_is_refused_with_the_remedy(tmp_path, lines):
    with pytest.raises(
        ValueError, match=r"nothing of balancing.*--set optim_wrapper.watch.gram_interval=100"
    ):
        plot_balance(write(tmp_path, lines), tmp_path / "balance.png")
    assert not (tmp_path / "balance.png").exists()


def test_curves_read_the_logs_of_training():
    """Lines as the log hook writes them: nested losses, tasks and metrics."""
    train = {
        "kind": "train",
        "step": 2,
        "loss": 3.0,
        "losses": {"cls.loss": 9.0},
        "tasks": {"cls": 2.0, "seg": 1.0},
    }
    val = {"kind": "val", "step": 4, "metrics": {"NDS": 0.25, "mIoU": 0.5}}
    assert loss_series([train, val]) == {"loss": [(2.0, 3.0)], "cls": [(2.0, 2.0)], "seg": [(2.0, 1.0)]}
    assert score_series([train, val]) == {"NDS": [(4.0, 0.25)], "mIoU": [(4.0, 0.5)]}

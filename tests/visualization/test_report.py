"""The report and its curves: everything from the run folder, self-contained, and honest about gaps."""

import html
import json
import re

import cv2
import numpy as np
import pytest

from perception.structures import CLASS_NAMES
from perception.utils import DataError
from perception.visualization import write_report
from perception.visualization.log_records import loss_series, score_series
from tests.visualization.run_folders import draw


def text_of(path):
    """Visible text of a page, without tags."""
    page = path.read_text(encoding="utf-8")
    body = re.sub(r"<style>.*?</style>|<wbr>", "", page, flags=re.S)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", body)))


@pytest.fixture
def run_folder(tmp_path):
    """A complete run in a folder with a space and an umlaut."""
    folder = tmp_path / "work_dirs" / "große demo"
    (folder / "pictures").mkdir(parents=True)
    metrics = {"NDS": 0.283, "mAP": 0.211, "mATE": 0.74, "mIoU": 0.437, "comparable": True}
    metrics |= {f"AP/{name}": 0.01 * index for index, name in enumerate(CLASS_NAMES)}
    metrics |= {"ATE/car": 0.512, "IoU/divider": 0.411, "IoU/boundary": 0.525}
    summary = {
        "NDS": 0.283,
        "mAP": 0.211,
        "mIoU": 0.437,
        "untrained": {"NDS": 0.001, "mIoU": 0.019},
        "constant": {"NDS": 0.071, "mIoU": 0.242},
        "seconds": {"setup": 180, "synthesize": 44.0, "train": 800, "evaluate": 33},
        "samples_per_second": 1.9,
        "peak_memory_mb": 2345.6,
        "pictures": ["pictures/scene-0103.png"],
    }
    contents = {
        "metrics": metrics,
        "summary": summary,
        "config": {"experiment_name": "bevformer_nano", "model": {"type": "BEVFormer"}},
        "env": {"python": "3.11", "cpu": {"name": "<script>alert(1)</script>"}},
    }
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    records = [
        {
            "step": step,
            "loss": 3.0 / (step + 1),
            "cls.loss_focal": 2.0 / (step + 1),
            "seg.loss_ce": 1.0 / (step + 1),
        }
        for step in range(30)
    ]
    records.append({"step": 29, "NDS": 0.283, "mIoU": 0.437})
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    picture = np.full((60, 100, 3), 90, np.uint8)
    cv2.imencode(".png", picture)[1].tofile(folder / "pictures" / "scene-0103.png")
    samples = {"model": "x", "samples": {"token": {"mAP": 0.1, "mIoU": 0.4}}}
    (folder / "metrics_per_sample.json").write_text(json.dumps(samples))
    draw(folder / "pictures" / "ranked", ["token"])
    return folder


def test_the_report_shows_scores_baselines_classes_and_costs(run_folder):
    path = write_report(run_folder)
    assert path == run_folder / "report.html"
    text = text_of(path)
    expected = (
        "bevformer_nano",
        "0.283",
        "0.437",
        "untrained model 0.001",
        "constant predictor 0.071",
        "constant predictor 0.242",
        "traffic cone 0.090",
        "car 0.000 0.512",
        "divider 0.411",
        "ped crossing –",
        "13 min 20 s",
        "in all 17 min 37 s",
        "training speed, samples/s 1.90",
        "2,346 MB",
        "perception test 'work_dirs/große demo'",
        "python 3.11",
    )
    assert [piece for piece in expected if piece not in text] == []
    assert "Missing from this report" not in text
    assert "Not comparable" not in text


def test_the_page_is_self_contained_and_escapes_what_it_shows(run_folder):
    page = write_report(run_folder).read_text(encoding="utf-8")
    sources = re.findall(r'(?:src)="([^"]{0,30})', page)
    assert len(sources) == 2
    assert all(source.startswith("data:image/") for source in sources)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert re.search(r"https?://", page) is None


def test_missing_pieces_are_said(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n', encoding="utf-8")
    text = text_of(write_report(tmp_path))
    for piece in (
        "summary.json is missing",
        "metrics.json is missing",
        "config.json is missing",
        "env.json is missing",
        "There are no pictures",
        "not measured",
    ):
        assert piece in text


def test_absent_baselines_pictures_and_tasks_are_said(run_folder):
    summary = json.loads((run_folder / "summary.json").read_text())
    del summary["untrained"], summary["constant"], summary["seconds"]
    del summary["samples_per_second"], summary["peak_memory_mb"]
    summary["pictures"] = ["pictures/scene-0103.png", "pictures/gone.png", "pictures/broken.png"]
    (run_folder / "summary.json").write_text(json.dumps(summary))
    (run_folder / "pictures" / "broken.png").write_bytes(b"")
    metrics = {"NDS": 0.283, "comparable": False}
    (run_folder / "metrics.json").write_text(json.dumps(metrics))
    (run_folder / "log.jsonl").unlink()
    text = text_of(write_report(run_folder, run_folder / "other page.html"))
    for piece in (
        "no scores of the untrained model",
        "no scores of the constant predictor",
        "gone.png",
        "cannot be read: broken.png",
        "no times, speed or memory",
        "no detection scores per class",
        "no IoU per class",
        "there is no log.jsonl",
        "Not comparable.",
    ):
        assert piece in text


def test_no_run_folder_and_damaged_files_are_data_errors(tmp_path, run_folder):
    with pytest.raises(DataError, match="no such run folder"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no run folder: it holds none"):
        write_report(tmp_path / "empty")
    (run_folder / "metrics.json").write_text("{")
    with pytest.raises(DataError, match=r"not JSON.*metrics\.json"):
        write_report(run_folder)
    (run_folder / "metrics.json").write_text("3")
    with pytest.raises(DataError, match="expected a JSON object, found int"):
        write_report(run_folder)


def test_task_losses_are_summed_and_evaluations_kept_apart(tmp_path):
    records = [
        {
            "step": 10,
            "loss": 5.0,
            "cls.loss_focal": 1.0,
            "cls.d0.loss_focal": 2.0,
            "cls.num_targets": 9.0,
            "lr": 1e-3,
        },
        {"step": 20, "loss": float("nan"), "cls.loss_focal": 1.0},
        {"step": 20, "NDS": 0.25, "mIoU": 0.5, "comparable": True},
    ]
    assert loss_series(records) == {"loss": [(10.0, 5.0)], "cls": [(10.0, 3.0)]}
    assert score_series(records) == {"NDS": [(20.0, 0.25)], "mIoU": [(20.0, 0.5)]}


def test_scores_of_images(run_folder):
    metrics = {"AP": 0.251, "AP50": 0.433, "AP/car": 0.6, "mIoU": 0.497, "fIoU": 0.8, "IoU/road": 0.9}
    (run_folder / "metrics.json").write_text(json.dumps(metrics))
    (run_folder / "summary.json").write_text(json.dumps({"AP": 0.251, "mIoU": 0.497}))
    (run_folder / "log.jsonl").write_text('{"step": 1, "AP": 0.251, "mIoU": 0.497}')
    page = write_report(run_folder).read_text()
    assert "average precision of boxes" in page
    for text in ("road", "car", "0.251", "0.497", "single images"):
        assert text in page
    words = re.sub(r'"data:[^"]*"', "", page)  # a picture's bytes may spell anything
    for text in ("nuscenes-devkit", "AOE", "divider", "NDS"):
        assert text not in words

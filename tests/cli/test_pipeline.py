"""The verbs one after another on a small synthetic world."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from perception.checkpoint import load_weights
from perception.cli.main import main
from perception.engine import read_log

REPOSITORY = Path(__file__).resolve().parents[2]


def test_check(options, capsys):
    assert main(["check", "bevformer_nano", *options]) == 0
    assert "no problem found" in capsys.readouterr().out


def test_browse_draws_what_training_sees(options, tmp_path, capsys):
    assert main(["browse", "bevformer_nano", "--out", str(tmp_path), "--index", "0", "3", *options]) == 0
    files = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert len(files) == 2
    for file in files:
        picture = cv2.imread(str(file))
        assert picture.shape[0] > 300
        assert picture.std() > 10


def test_browse_draws_an_index(index, synthetic_root, tmp_path):
    source = index / "v1.0-mini_mini_val.json"
    words = ["browse", str(source), "--out", str(tmp_path), "--num", "1", "--data-root", str(synthetic_root)]
    assert main(words) == 0
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("item", ["4", "-1"])
def test_browse_of_an_item_that_is_not_there(index, synthetic_root, tmp_path, capsys, item):
    words = ["browse", str(index / "v1.0-mini_mini_val.json"), "--data-root", str(synthetic_root)]
    assert main([*words, "--out", str(tmp_path), "--index", "0", item]) == 2
    assert f"no item {item}; this dataset has the items 0 to 3" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_index_away_from_its_images(index, tmp_path, capsys):
    assert main(["browse", str(index / "v1.0-mini_mini_val.json"), "--out", str(tmp_path)]) == 3
    assert "--data-root" in capsys.readouterr().err


def test_damaged_image_is_named_with_its_sample(options, synthetic_root, index, tmp_path, capsys):
    data = json.loads((index / "v1.0-mini_mini_val.json").read_text())
    data["data_list"][0]["images"]["CAM_FRONT"]["img_path"] = "samples/CAM_FRONT/nowhere.jpg"
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps(data))
    words = [
        "browse",
        str(broken),
        "--out",
        str(tmp_path),
        "--data-root",
        str(synthetic_root),
        "--index",
        "0",
    ]
    assert main(words) == 3
    found = capsys.readouterr().err
    assert "nowhere.jpg" in found
    assert data["data_list"][0]["token"] in found


@pytest.mark.slow
def test_train_test_draw_and_report(options, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", "bevformer_nano", "--work-dir", str(run), *options]) == 0
    assert main(["train", "bevformer_nano", "--work-dir", str(run), *options]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(["test", str(run)]) == 0
    assert main(["test", str(run), "--subset", "2"]) == 0
    assert "not comparable" in capsys.readouterr().out
    assert main(["test", "bevformer_nano", "--untrained", "--work-dir", str(run), *options]) == 0
    for name in ("constant", "ground-truth"):
        assert main(["test", "bevformer_nano", "--baseline", name, "--work-dir", str(run), *options]) == 0
    assert main(["visualize", str(run), "--num", "2"]) == 0
    scores = json.loads((run / "metrics_per_sample.json").read_text())["samples"]
    assert len(scores) == 4
    assert all(set(found) == {"mAP", "mIoU"} for found in scores.values())
    assert main(["report", str(run), "--seconds", "setup=1.5", "--draw", "1"]) == 0
    drawn = json.loads((run / "pictures" / "ranked" / "predictions.json").read_text())["pictures"]
    assert len(drawn) == 2
    assert set(drawn) <= set(scores)
    assert {path.name for path in (run / "pictures" / "ranked").glob("*.jpg")} == set(drawn.values())
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Best sample" in page
    assert "Worst sample" in page
    summary = json.loads((run / "summary.json").read_text())
    assert {"NDS", "mAP", "mIoU", "untrained", "constant", "seconds", "samples_per_second"} <= set(summary)
    assert summary["ground-truth"]["mIoU"] == 1.0
    assert summary["ground-truth"]["NDS"] > summary["NDS"]
    assert summary["seconds"]["setup"] == 1.5
    assert {"train", "evaluate"} <= set(summary["seconds"])
    assert len(list((run / "pictures").glob("prediction_*.jpg"))) == 2
    assert main(["test", str(run), "--set", "model.box_head.num_query=7"]) == 4


@pytest.mark.slow
def test_predict_on_real_images(options, tmp_path, shared_root):
    run = tmp_path / "run"
    assert main(["train", "bevformer_nano", "--work-dir", str(run), *options]) == 0
    source = shared_root / "data" / "nuscenes_sample" / "info.json"
    assert main(["predict", str(run), "--data", str(source), "--out", str(tmp_path / "out")]) == 0
    records = json.loads((tmp_path / "out" / "predictions.json").read_text())["samples"]
    assert list(records) == ["ca9a282c9e77460f8360f564131a8af5"]


@pytest.mark.slow
def test_two_ranks_by_the_launcher(options, tmp_path):
    """Two steps of two samples on two ranks, then the evaluation, on the CPU."""
    run = tmp_path / "run"
    one_a_rank = ["train_dataloader.batch_size=1"]
    done = subprocess.run(
        ["bash", "tools/dist_train.sh", "bevformer_nano", "2", "--work-dir", str(run), *options, *one_a_rank],
        cwd=REPOSITORY,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert load_weights(run).state["step"] == 2
    assert load_weights(run).state["world_size"] == 2
    assert set(json.loads((run / "metrics.json").read_text())) >= {"NDS", "mAP", "mIoU"}
    lines = [line for line in read_log(run / "log.jsonl") if line["kind"] == "train"]
    assert [line["step"] for line in lines] == [1, 2]
    assert set(lines[0]["tasks"]) == {"cls", "box", "velocity", "seg"}

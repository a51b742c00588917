"""train, test, predict, dry run, and the files of the run folder."""

import json
from pathlib import Path

import pytest
import torch
import toy_world

from perception.checkpoint import find_checkpoint
from perception.engine import (
    evaluate,
    hash_config,
    predict,
    read_log,
    rehearse,
    to_plain,
    train,
    update_summary,
)
from perception.engine.jsonl_log import JsonlLog, last_evaluation
from perception.utils import sha256_file

FILES = {
    "config.json",
    "env.json",
    "log.jsonl",
    "metrics.json",
    "summary.json",
    "checkpoints",
    "logs",
    ".lock",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(toy_world.config(tmp_path_factory.mktemp("run") / "toy"))


def test_run_folder(run: Path) -> None:
    assert {path.name for path in run.iterdir()} >= FILES
    config = json.loads((run / "config.json").read_text())
    assert config["model"] == {"type": "toy_world.ToyModel"}
    summary = json.loads((run / "summary.json").read_text())
    assert {"mIoU", "seconds", "samples_per_second", "peak_memory_mb"} <= summary.keys()
    assert summary["steps"] == 12
    assert summary["num_replaced_samples"] == 0
    lines = read_log(run / "log.jsonl")
    kinds = [line["kind"] for line in lines]
    assert kinds.count("train") == 12
    assert kinds.count("val") == 3
    keys = {
        "step",
        "epoch",
        "lr",
        "loss",
        "losses",
        "tasks",
        "grad_norm",
        "data_time",
        "step_time",
        "memory_mb",
    }
    assert keys <= lines[1].keys()
    assert set(lines[1]["losses"]) == {"det.loss_l1", "seg.loss_ce"}
    assert not list(run.glob("20*"))


def test_summary_counts_replaced_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy_world.ToyDataset, "num_skipped", 2, raising=False)
    folder = train(toy_world.config(tmp_path / "toy"))
    assert json.loads((folder / "summary.json").read_text())["num_replaced_samples"] == 2


def test_test_and_predict_agree(run: Path) -> None:
    cfg = toy_world.config(run)
    metrics = evaluate(cfg, run)
    trained = json.loads((run / "metrics.json").read_text())
    assert trained["comparable"] is True
    assert metrics["count"] == 10
    last = [line for line in read_log(run / "log.jsonl") if line["kind"] == "val"][-1]
    assert metrics["mIoU"] == pytest.approx(last["metrics"]["mIoU"], abs=1e-6)
    predictions = [float(sample.prediction) for sample in predict(cfg, run)]
    assert sum(predictions) / 10 == pytest.approx(metrics["mIoU"], abs=1e-6)
    assert [sample.sample_token for sample in predict(cfg, run, indices=[3, 1])] == ["sample3", "sample1"]


@pytest.mark.parametrize("is_step_folder", [False, True])
def test_a_checkpoint_is_hashed_once(
    run: Path, is_step_folder: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []

    def count(path: Path) -> str:
        hashed.append(Path(path).name)
        return sha256_file(path)

    monkeypatch.setattr("perception.checkpoint.manifest.sha256_file", count)
    cfg = toy_world.config(run)
    model = find_checkpoint(run) if is_step_folder else run
    for use in (lambda: evaluate(cfg, model, subset=2), lambda: next(predict(cfg, model))):
        hashed.clear()
        use()
        assert sorted(hashed) == sorted(set(hashed))
        assert "model.safetensors" in hashed


def test_untrained_and_subset_are_kept_apart(run: Path) -> None:
    before = json.loads((run / "metrics.json").read_text())
    evaluate(toy_world.config(run), untrained=True)
    few = evaluate(toy_world.config(run), run, subset=4)
    assert few["count"] == 4
    assert json.loads((run / "metrics_subset.json").read_text())["comparable"] is False
    assert json.loads((run / "metrics.json").read_text()) == before
    assert set(json.loads((run / "summary.json").read_text())["untrained"]) == {"mIoU"}
    with pytest.raises(ValueError, match="either a model"):
        evaluate(toy_world.config(run))


def test_load_from(run: Path, tmp_path: Path) -> None:
    cfg = toy_world.config(tmp_path / "new", load_from=str(run), train_cfg=dict(by_epoch=False, max_iters=5))
    assert read_log(train(cfg) / "log.jsonl")[0]["step"] == 0


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    assert rehearse(toy_world.config(tmp_path / "run")).keys() == {"mIoU", "count"}
    assert not (tmp_path / "run").exists()


def test_dry_run_finds_a_broken_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy_world.ToyMetric, "compute_metrics", lambda self, results: results["missing"])
    with pytest.raises(KeyError, match="missing"):
        rehearse(toy_world.config(tmp_path / "run"))


def test_unknown_keys_and_hooks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown keys \['train_dataloder'\]"):
        train(toy_world.config(tmp_path, train_dataloder=None))
    with pytest.raises(ValueError, match=r"unknown names \['loger'\]"):
        train(toy_world.config(tmp_path, default_hooks=dict(loger=None)))
    with pytest.raises(ValueError, match="allowed: by_epoch=True with max_epochs"):
        train(toy_world.config(tmp_path, train_cfg=dict(by_epoch=True, max_iters=3)))


def test_the_config_is_not_changed(tmp_path: Path) -> None:
    cfg = toy_world.config(tmp_path / "run", train_cfg=dict(by_epoch=False, max_iters=5))
    before = to_plain(cfg.to_dict())
    train(cfg)
    assert to_plain(cfg.to_dict()) == before


def test_hash_ignores_where(tmp_path: Path) -> None:
    one, two = (toy_world.config(tmp_path / name).to_dict() for name in "ab")
    assert hash_config(one) == hash_config(two)
    assert hash_config(one) != hash_config(toy_world.config(tmp_path, model__width=9).to_dict())


def test_update_summary_merges(tmp_path: Path) -> None:
    update_summary(tmp_path, {"seconds": {"train": 1.0}, "NDS": torch.tensor(0.5)})
    assert update_summary(tmp_path, {"seconds": {"setup": float("nan")}}) == {
        "seconds": {"train": 1.0, "setup": None},
        "NDS": 0.5,
    }


def test_log_survives_a_cut_line_and_rewinds(tmp_path: Path) -> None:
    log = JsonlLog(tmp_path)
    for step in (1, 2, 3):
        log.write({"kind": "train", "step": step})
    log.close()
    with open(log.path, "a") as file:
        file.write('{"kind": "tra')
    assert [line["step"] for line in read_log(log.path)] == [1, 2, 3]
    log.rewind(step=2)
    assert [line["step"] for line in read_log(log.path)] == [1, 2]


def test_the_last_evaluation_of_a_step(tmp_path: Path) -> None:
    log = JsonlLog(tmp_path)
    assert last_evaluation(log.path, step=2) is None
    for step, score in ((2, 0.1), (2, 0.2), (4, 0.3)):
        log.write({"kind": "train", "step": step})
        log.write({"kind": "val", "step": step, "metrics": {"NDS": score}})
    log.close()
    found = last_evaluation(log.path, step=2)
    assert found is not None
    assert found["metrics"] == {"NDS": 0.2}
    assert last_evaluation(log.path, step=3) is None


def test_tensorboard(tmp_path: Path) -> None:
    cfg = toy_world.config(
        tmp_path / "run", visualizer=None, default_hooks=dict(tensorboard=dict(interval=5))
    )
    train(cfg)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert {"loss/det.loss_l1", "task/seg", "train/loss", "val/mIoU"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("task/seg")] == [5, 10]


def test_a_stale_metrics_file_does_not_reach_the_summary(tmp_path: Path) -> None:
    """A run that never evaluates has no scores, whatever lies in its folder; one that does has its own."""
    (tmp_path / "metrics.json").write_text(json.dumps({"mIoU": 0.5, "NDS": 0.9, "step": 12}))
    folder = train(toy_world.config(tmp_path, train_cfg__val_interval=0))
    assert not {"mIoU", "NDS"} & json.loads((folder / "summary.json").read_text()).keys()
    assert [line for line in read_log(folder / "log.jsonl") if line["kind"] == "val"] == []
    other = train(toy_world.config(tmp_path / "other", train_cfg__val_interval=None))
    last = [line for line in read_log(other / "log.jsonl") if line["kind"] == "val"]
    assert [line["step"] for line in last] == [12]
    assert json.loads((other / "summary.json").read_text())["mIoU"] == last[0]["metrics"]["mIoU"]

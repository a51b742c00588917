"""FCOS nano on the synthetic BDD100K world: trained by MCLGS on disjoint labels, evaluated, resumed, predicted."""

import json
import math
from pathlib import Path

import pytest

from perception.config import load_config
from perception.datasets import prepare_bdd100k
from perception.engine import PerceptionRunner, predict, read_log

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def options(bdd100k_root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    out = tmp_path_factory.mktemp("index")
    prepare_bdd100k(bdd100k_root, out=out)
    words = [
        "train_dataloader.batch_size=2",
        "train_dataloader.sampler.samples_per_epoch=4",
        "train_cfg.max_epochs=2",
    ]
    words += ["train_cfg.val_interval=2", "param_scheduler.0.end=2", "param_scheduler.1.end=2"]
    for name in ("train", "val", "test"):
        words += [f"{name}_dataloader.dataset.data_root={bdd100k_root}", f"{name}_dataloader.num_workers=0"]
        split = "train" if name == "train" else "val"
        words += [f"{name}_dataloader.dataset.ann_file={out}/bdd100k_{split}.json"]
        words += [f"{name}_dataloader.persistent_workers=False"]
    for name in ("val", "test"):
        words += [f"{name}_evaluator.{number}.data_root={bdd100k_root}" for number in (0, 1)]
    return words


def test_mclgs_trains_resumes_and_predicts(options: list[str], tmp_path: Path) -> None:
    config = load_config("fcos_nano_det-seg-mclgs", options)
    config.work_dir = str(tmp_path)
    PerceptionRunner.from_cfg(config).train(stop_after=2)
    config.resume = True
    PerceptionRunner.from_cfg(config).train()
    steps = [line for line in read_log(tmp_path / "log.jsonl") if line["kind"] == "train"]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert all(set(line["tasks"]) == {"det", "seg"} for line in steps)  # half of a batch is labelled for each
    assert all(math.isfinite(line["grad_norm"]) for line in steps)
    assert "cosines" in steps[0]["balance"]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert 0 <= metrics["mIoU"] <= 1

    samples = list(predict(config, tmp_path))
    assert len(samples) > 0
    for sample in samples:
        assert sample.pred_sem_seg.sem_seg.shape[-2:] == tuple(sample.metainfo["ori_shape"])
        assert {"bboxes", "scores", "labels"} == set(sample.pred_instances.keys())

"""An index of the small synthetic world, and the options that point the nano config to it."""

import pytest

from perception.cli.main import main


@pytest.fixture(scope="session")
def index(synthetic_root, tmp_path_factory):
    out = tmp_path_factory.mktemp("index")
    assert main(["data", "prepare", str(synthetic_root), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def options(synthetic_root, index):
    words = [f"{loader}_dataloader.dataset.data_root={synthetic_root}" for loader in ("train", "val", "test")]
    words += [f"{loader}_evaluator.0.data_root={synthetic_root}" for loader in ("val", "test")]
    words += [f"train_dataloader.dataset.ann_file={index / 'v1.0-mini_mini_train.json'}"]
    words += [
        f"{name}_dataloader.dataset.ann_file={index / 'v1.0-mini_mini_val.json'}" for name in ("val", "test")
    ]
    words += [f"{name}_dataloader.{key}" for name in ("train", "val", "test") for key in ("num_workers=0",)]
    for name, place in (("train", -2), ("val", -2), ("test", -2)):
        words.append(f"{name}_dataloader.dataset.pipeline.{place}.cache_dir=null")
    words += ["train_dataloader.batch_size=2", "train_cfg.max_epochs=1", "train_cfg.val_interval=null"]
    words += ["param_scheduler.0.end=2", "param_scheduler.1.T_max=1", "param_scheduler.1.end=1"]
    return ["--set", *words]

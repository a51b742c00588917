"""Fixtures that several packages' tests share, and what must be set before the first import."""

import os
from pathlib import Path

import pytest
import torch

# `import mmdet3d` needs mmcv's compiled module, which this import stands in for.
import perception  # noqa: F401
from tests.parity import require

# Without a GPU kernels run in Triton's interpreter. Triton reads this when it is imported, by torch's compiler too.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

_REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_root() -> Path:
    """Folder of real reference data beside the repository; tests that need it are skipped elsewhere."""
    root = _REPOSITORY.parent / "shared"
    if not (root / "data").is_dir():
        pytest.skip(f"the reference data is not at {root}")
    return root


@pytest.fixture(scope="session")
def parity_folder() -> Path:
    """Folder of the official code's numbers; tests that need it are skipped where it is not."""
    return require(".")


@pytest.fixture(scope="session")
def synthetic_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthetic nuScenes root: one scene of mini_train, one of mini_val, four samples each. Read only."""
    from perception.synthetic import synthesize

    root = tmp_path_factory.mktemp("synthetic") / "nuscenes"
    synthesize(root, num_scenes=2, seed=0, samples_per_scene=4)
    return root


@pytest.fixture(scope="session")
def bdd100k_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthetic BDD100K root: 4 + 4 images with boxes, 4 + 4 with masks, 320 × 180. Read only."""
    from perception.synthetic import synthesize_bdd100k

    root = tmp_path_factory.mktemp("synthetic") / "bdd100k"
    return synthesize_bdd100k(
        root, num_det=(4, 4), num_seg=(4, 4), size=(320, 180), num_workers=1, progress=False
    )


@pytest.fixture(scope="session")
def nano_index(synthetic_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the index of the small world."""
    from perception.datasets import prepare

    out = tmp_path_factory.mktemp("index")
    prepare(synthetic_root, out=out)
    return out


@pytest.fixture(scope="session")
def nano_options(synthetic_root: Path, nano_index: Path) -> list[str]:
    """Overrides that point the nano config to the small world, for one epoch; no cache, no loader workers."""
    words = [f"{loader}_dataloader.dataset.data_root={synthetic_root}" for loader in ("train", "val", "test")]
    words += [f"{loader}_evaluator.0.data_root={synthetic_root}" for loader in ("val", "test")]
    words += [f"train_dataloader.dataset.ann_file={nano_index / 'v1.0-mini_mini_train.json'}"]
    words += [
        f"{name}_dataloader.dataset.ann_file={nano_index / 'v1.0-mini_mini_val.json'}"
        for name in ("val", "test")
    ]
    for name in ("train", "val", "test"):
        words += [f"{name}_dataloader.num_workers=0", f"{name}_dataloader.dataset.pipeline.-2.cache_dir=null"]
    words += ["train_dataloader.batch_size=2", "train_cfg.max_epochs=1", "train_cfg.val_interval=null"]
    words += ["param_scheduler.0.end=2", "param_scheduler.1.T_max=1", "param_scheduler.1.end=1"]
    return words

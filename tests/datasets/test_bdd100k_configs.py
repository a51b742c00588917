"""The shipped data configs, on a tiny root: from the files to collated batches."""

from pathlib import Path
from typing import Any

import pytest
import torch

from perception.config import load_config, missing_data, with_data_root
from perception.datasets import prepare_bdd100k
from perception.engine import MixedLabelSampler
from perception.engine.data_loading import build_dataloader
from tests.datasets.bdd100k_world import write_root

CONFIGS = Path(__file__).parents[2] / "configs" / "_base_" / "datasets"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = write_root(tmp_path_factory.mktemp("configs") / "bdd100k", num_det=12, num_seg=10)
    prepare_bdd100k(root, progress=False)
    return root


def read(name: str, root: Path) -> Any:
    cfg = with_data_root(load_config(CONFIGS / f"{name}.py"), root)
    assert missing_data(cfg) == []
    return cfg


def load(cfg: Any, loader: str, **changes: Any) -> Any:
    return build_dataloader({**cfg[loader], "num_workers": 0, **changes}, seed=0)


@pytest.mark.parametrize(("name", "batch_size"), [("bdd100k", 16), ("bdd100k_synthetic", 8)])
def test_half_of_each_training_batch_has_either_label(root, name, batch_size):
    loader = load(read(name, root), "train_dataloader")
    assert isinstance(loader.sampler, MixedLabelSampler)
    batches = list(loader)
    assert len(batches) == -(-23 // batch_size)
    for batch in batches:
        samples, images = batch["data_samples"], batch["inputs"]["img"]
        assert len(samples) == batch_size
        num_boxes = sum("gt_instances" in sample for sample in samples)
        num_masks = sum("gt_sem_seg" in sample for sample in samples)
        num_both = sum("gt_instances" in sample and "gt_sem_seg" in sample for sample in samples)
        assert num_boxes + num_masks - num_both == batch_size
        assert batch_size // 2 <= min(num_boxes, num_masks)
        for image, sample in zip(images, samples, strict=True):
            assert image.dtype == torch.uint8
            assert tuple(image.shape[-2:]) == sample.img_shape
            if "gt_sem_seg" in sample:
                assert sample.gt_sem_seg.sem_seg.shape[-2:] == image.shape[-2:]


@pytest.mark.parametrize(("name", "shape"), [("bdd100k", (414, 736)), ("bdd100k_synthetic", (144, 256))])
def test_every_frame_is_validated_once(root, name, shape):
    samples = [
        sample for batch in load(read(name, root), "val_dataloader") for sample in batch["data_samples"]
    ]
    assert sorted(sample.frame_name for sample in samples) == [
        *(f"val-det-{number}.jpg" for number in range(2)),
        *(f"val-seg-{number}.jpg" for number in range(2)),
    ]
    assert {sample.img_shape for sample in samples} == {shape}
    assert {sample.ori_shape for sample in samples} == {(36, 64)}


@pytest.mark.parametrize("labels", ["det", "seg"])
def test_a_single_task_takes_its_own_set_by_the_same_sampler(root, labels):
    cfg = read("bdd100k_synthetic", root)
    dataset = {**cfg.train_dataloader.dataset, "labels": labels}
    samples = [s for b in load(cfg, "train_dataloader", dataset=dataset) for s in b["data_samples"]]
    assert all(
        ("gt_instances" in sample, "gt_sem_seg" in sample) == (labels == "det", labels == "seg")
        for sample in samples
    )

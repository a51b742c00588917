"""Baselines look at no image: neither does the code that scores them."""

import json
import time

import pytest
import torch
from mmengine.config import Config

from perception.config import ConfigError, load_config
from perception.datasets import LoadMultiViewImages
from perception.datasets.transforms import images
from perception.engine import baselines
from perception.engine.baselines import score_baseline, without_images
from perception.registry import DATASETS


@pytest.fixture
def cfg(nano_options, tmp_path):
    loaded = load_config("bevformer_nano", nano_options)
    loaded.work_dir = str(tmp_path)
    return loaded


@pytest.mark.parametrize("name", ["constant", "ground-truth"])
def test_scores_are_the_same_without_images(cfg, tmp_path, monkeypatch, name):
    with monkeypatch.context() as patch:
        patch.setattr(baselines, "without_images", dict)
        slow = score_baseline(cfg, name)
    monkeypatch.setattr(images, "read_content", None)  # reading one would now fail
    start = time.monotonic()
    assert score_baseline(cfg, name) == slow
    assert time.monotonic() - start < 8
    written = json.loads((tmp_path / f"metrics_{name}.json").read_text())
    assert written["mIoU"] == slow["mIoU"]
    assert written["baseline"] == name


def test_all_but_the_images_stays(cfg):
    settings = cfg.test_dataloader["dataset"]
    whole, bare = DATASETS.build(dict(settings)), DATASETS.build(without_images(settings))
    assert any(step["type"] is LoadMultiViewImages for step in settings["pipeline"])
    assert len(bare) == len(whole)
    left, right = whole[1], bare[1]
    assert set(left["inputs"]) - set(right["inputs"]) == {"img"}
    assert set(left["data_samples"].metainfo) - set(right["data_samples"].metainfo) == {"img_shape"}
    for sample in (left["data_samples"], right["data_samples"]):
        assert len(sample.gt_instances_3d)
    boxes = [sample["data_samples"].gt_instances_3d.bboxes_3d.tensor for sample in (left, right)]
    torch.testing.assert_close(*boxes, rtol=0, atol=0, equal_nan=True)
    masks = [sample["data_samples"].gt_bev_seg.sem_seg for sample in (left, right)]
    torch.testing.assert_close(*masks, rtol=0, atol=0)


def test_images_have_no_baseline():
    cfg = Config({"val_dataloader": {"dataset": {"type": "BDD100KDataset"}}, "val_evaluator": []})
    with pytest.raises(ConfigError, match="--untrained"):
        score_baseline(cfg, "constant")

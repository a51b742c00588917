"""A real export against the checkpoint it was made from: the same scores, boxes and maps, sample by sample."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from perception.config import load_config, override_config, with_data_root
from perception.datasets import prepare_bdd100k
from perception.engine import evaluate, predict
from perception.engine.export_run import evaluate_export, predict_export
from perception.engine.exported_model import raw_dataset
from perception.export import ExportOptions, export_model
from perception.registry import DATASETS
from perception.runtime import Predictor, verify_export
from perception.runtime.proof import compare_steps
from tests.engine.test_export_run import read_frame
from tests.export.test_export_model import SMALL, SMALL_2D, weights_file

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def images(bdd100k_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    root = Path(shutil.copytree(bdd100k_root, folder / "bdd100k"))
    prepare_bdd100k(root)
    few = "model.box_head.score_threshold=0.001"  # of random weights, which are sure of nothing
    words = [*SMALL_2D, few, *(f"{name}_dataloader.num_workers=0" for name in ("train", "val", "test"))]
    cfg = override_config(with_data_root(load_config("fcos_nano"), root), words)
    weights = weights_file("fcos_nano", words, folder)
    export_model(cfg, weights, folder / "export", options=ExportOptions(num_steps=2))
    return cfg, weights, folder / "export"


def as_outputs(results, *, num=40):
    """Predictions in the form that proofs compare."""
    steps = []
    for result in results:
        found = result.pred_instances_3d
        arrays = {
            "boxes": found.bboxes_3d.tensor[:num],
            "scores": found.scores_3d[:num],
            "labels": found.labels_3d[:num],
        }
        seg = result.pred_bev_seg.sem_seg.numpy()
        steps.append({name: array.numpy()[None] for name, array in arrays.items()} | {"seg": seg})
    return steps


@pytest.fixture(scope="module")
def rig(nano_options, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rig")
    words = [*nano_options, *SMALL]
    cfg = override_config(load_config("bevformer_nano"), words)
    weights = weights_file("bevformer_nano", words, folder)
    export_model(cfg, weights, folder / "export", options=ExportOptions(num_steps=2))
    return cfg, weights, folder / "export"


def test_scores_and_predictions_are_the_checkpoints(rig, tmp_path):
    cfg, weights, folder = rig
    cfg.work_dir = str(tmp_path / "run")
    expected, found = evaluate(cfg, weights), evaluate_export(cfg, folder, out=tmp_path, num_threads=1)
    numbers = [name for name, value in expected.items() if isinstance(value, float)]
    assert {"NDS", "mAP", "mIoU"} <= set(numbers)
    for name in numbers:
        assert found[name] == pytest.approx(expected[name], abs=1e-3), name
    dataset = DATASETS.build(raw_dataset(cfg.test_dataloader.dataset, is_rig=True))
    indices = range(len(dataset))
    torchs = as_outputs(predict(cfg, weights, indices=indices))
    measured = compare_steps(torchs, as_outputs(predict_export(folder, dataset, indices)))
    assert measured["scores"]["max"] < 1e-4
    assert measured["boxes"]["max"] < 1e-2
    assert measured["seg"]["mean"] < 1e-4  # share of pixels of another class
    assert all(len(np.unique(step["seg"])) > 1 for step in torchs)  # a map that says something


def test_predictor_on_full_images(rig, synthetic_root):
    """From the devkit's tables to boxes, by the class that vehicles use; the graph resizes and cuts."""
    from nuscenes import NuScenes

    cfg, _, folder = rig
    verify_export(folder, num_threads=1)
    predictor = Predictor(folder, num_threads=1)
    dataset = DATASETS.build(raw_dataset(cfg.test_dataloader.dataset, is_rig=True, full_images=True))
    tables = NuScenes("v1.0-mini", str(synthetic_root), verbose=False)
    for token, result in zip(
        dataset.sample_tokens, predict_export(folder, dataset, range(len(dataset))), strict=True
    ):
        mine = predictor.predict(read_frame(tables, token))
        (expected,) = as_outputs([result])
        found = {"boxes": mine.boxes_lidar, "scores": mine.scores, "labels": mine.labels}
        found = {name: array[None, :40] for name, array in found.items()} | {"seg": mine.map_classes[None]}
        measured = compare_steps([expected], [found])
        assert measured["boxes"]["max"] < 1e-2
        assert measured["scores"]["max"] < 1e-4
        assert measured["seg"]["mean"] < 1e-4


def test_scores_and_predictions_of_images_are_the_checkpoints(images, tmp_path):
    cfg, weights, folder = images
    cfg.work_dir = str(tmp_path / "run")
    expected, found = evaluate(cfg, weights), evaluate_export(cfg, folder, out=tmp_path, num_threads=1)
    numbers = [name for name, value in expected.items() if isinstance(value, float)]
    assert {"AP", "mIoU"} <= set(numbers)
    for name in numbers:
        assert found[name] == pytest.approx(expected[name], abs=1e-3, nan_ok=True), name
    dataset = DATASETS.build(raw_dataset(cfg.test_dataloader.dataset, is_rig=False))
    indices = range(len(dataset))
    torchs, graphs = predict(cfg, weights, indices=indices), predict_export(folder, dataset, indices)
    for mine, theirs in zip(torchs, graphs, strict=True):
        mine_px, theirs_px = (one.pred_sem_seg.sem_seg for one in (mine, theirs))
        assert (mine_px != theirs_px).float().mean() < 1e-3
        assert len(mine_px.unique()) > 1
        boxes, others = mine.pred_instances, theirs.pred_instances
        assert len(boxes) > 10
        np.testing.assert_allclose(others.scores[:10], boxes.scores[:10], atol=1e-4)

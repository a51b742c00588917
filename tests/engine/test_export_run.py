"""Exported models by the data sets and metrics of training; hand-made graphs stand for exports here."""

import json

import cv2
import numpy as np
import pytest
from nuscenes import NuScenes

from perception.config import ConfigError, config_from_json, load_config, override_config, with_data_root
from perception.config.serialise import dump_json
from perception.datasets import prepare_bdd100k
from perception.engine.export_run import evaluate_export, predict_export
from perception.engine.exported_model import raw_dataset
from perception.registry import DATASETS
from perception.runtime import Camera, Frame, Predictor, pose_matrix
from perception.structures import BDD_BOX_CLASSES, BDD_SEG_CLASSES, CAMERA_NAMES, CLASS_NAMES, MAP_CLASSES
from tests.datasets.bdd100k_world import write_root
from tests.runtime.toy_export import write_bevformer, write_fcos


@pytest.fixture(scope="module")
def cfg(nano_options):
    return load_config("bevformer_nano", nano_options)


@pytest.fixture(scope="module")
def export(cfg, tmp_path_factory):
    return write_bevformer(
        tmp_path_factory.mktemp("export") / "toy",
        map_shape=(200, 400),
        classes={"boxes": CLASS_NAMES, "seg": MAP_CLASSES},
        training_config=dump_json(cfg),
    )


@pytest.fixture(scope="module")
def raw(cfg):
    return DATASETS.build(raw_dataset(cfg.test_dataloader.dataset, is_rig=True, full_images=True))


def read_frame(tables: NuScenes, token: str) -> Frame:
    """A sample as a user of nuScenes reads it, with the devkit."""
    sample = tables.get("sample", token)

    def record(channel):
        data = tables.get("sample_data", sample["data"][channel])
        calibration = tables.get("calibrated_sensor", data["calibrated_sensor_token"])
        pose = tables.get("ego_pose", data["ego_pose_token"])
        mount = pose_matrix(calibration["translation"], calibration["rotation"])
        return data, calibration, mount, pose_matrix(pose["translation"], pose["rotation"])

    cameras = {}
    for name in CAMERA_NAMES:
        data, calibration, mount, pose = record(name)
        image = cv2.imread(f"{tables.dataroot}/{data['filename']}")[..., ::-1]
        intrinsics = np.array(calibration["camera_intrinsic"])
        cameras[name] = Camera(image=image, intrinsics=intrinsics, camera2ego=mount, ego2global=pose)
    _, _, mount, pose = record("LIDAR_TOP")
    return Frame(
        cameras=cameras,
        lidar2ego=mount,
        ego2global=pose,
        timestamp=sample["timestamp"] * 1e-6,
        scene=sample["scene_token"],
    )


def test_a_stream_of_the_devkits_numbers_is_what_the_data_set_gives(export, raw, synthetic_root):
    """Predictor from nuScenes' tables against the index, `lidar2img`, motion and history of the data set."""
    tables = NuScenes("v1.0-mini", str(synthetic_root), verbose=False)
    predictor = Predictor(export)
    found = list(predict_export(export, raw, range(len(raw))))
    assert len(found) == 4
    shifts = set()
    for token, result in zip(raw.sample_tokens, found, strict=True):
        mine = predictor.predict(read_frame(tables, token))
        boxes = result.pred_instances_3d.bboxes_3d.tensor.numpy()
        np.testing.assert_allclose(mine.boxes_lidar, boxes, atol=2e-5)
        np.testing.assert_array_equal(mine.map_classes, result.pred_bev_seg.sem_seg[0].numpy())
        shifts.add(float(boxes[0, 0]))
    assert len(shifts) == 4  # the graph sees images, motion and history


def test_scores_of_an_export(cfg, export, tmp_path, capsys):
    scores = evaluate_export(cfg, export, out=tmp_path)
    assert {"NDS", "mAP", "mIoU", "comparable"} <= set(scores)
    assert scores["comparable"] is True
    written = json.loads((tmp_path / "metrics_fp32.json").read_text())
    assert written["NDS"] == scores["NDS"]
    assert (written["variant"], written["full_images"]) == ("fp32", False)
    assert "toy_bevformer fp32: 4" in capsys.readouterr().err
    each = json.loads((tmp_path / "metrics_fp32_per_sample.json").read_text())["samples"]
    assert len(each) == 4
    assert all(np.isfinite(list(values.values())).all() and values for values in each.values())
    part = evaluate_export(cfg, export, out=tmp_path, subset=2)
    assert part["comparable"] is False
    assert json.loads((tmp_path / "metrics_fp32_subset.json").read_text())["subset"] == 2


def test_the_history_is_that_of_the_scene(cfg, export):
    """Two scenes one after the other: the second begins without history."""
    settings = raw_dataset(cfg.test_dataloader.dataset, is_rig=True)
    dataset = DATASETS.build(settings)
    twice = [
        result.pred_instances_3d.bboxes_3d.tensor for result in predict_export(export, dataset, [0, 1, 0, 1])
    ]
    for first, again in zip(twice[:2], twice[2:], strict=True):
        assert first.equal(again)
    (alone,) = predict_export(export, dataset, [1])
    assert not alone.pred_instances_3d.bboxes_3d.tensor.equal(twice[1])


def test_images_are_those_before_resizing(cfg):
    settings = cfg.test_dataloader.dataset
    sizes = {
        full: DATASETS.build(raw_dataset(settings, is_rig=True, full_images=full))[0]["inputs"]["img"].shape[
            -2:
        ]
        for full in (False, True)
    }
    assert (sizes[False], sizes[True]) == ((198, 352), (396, 704))


def test_a_step_that_no_graph_does_is_refused(cfg, export):
    config = dump_json(cfg)
    flip = {"type": "perception.datasets.BEVRandomFlip", "prob": 0.5}
    config["test_dataloader"]["dataset"]["pipeline"].insert(2, flip)
    with pytest.raises(ConfigError, match="BEVRandomFlip.*exported graph"):
        evaluate_export(config_from_json(config), export)


def test_the_config_comes_from_the_export(cfg, export):
    assert dump_json(load_config(export)) == dump_json(cfg)
    assert load_config(export, ["test_dataloader.num_workers=3"]).test_dataloader.num_workers == 3


@pytest.fixture(scope="module")
def image_cfg(tmp_path_factory):
    root = write_root(tmp_path_factory.mktemp("images") / "bdd100k")
    prepare_bdd100k(root)
    words = [f"{name}_dataloader.num_workers=0" for name in ("train", "val", "test")]
    return override_config(with_data_root(load_config("fcos_nano"), root), words)


@pytest.fixture(scope="module")
def image_export(image_cfg, tmp_path_factory):
    return write_fcos(
        tmp_path_factory.mktemp("export") / "toy",
        classes={"boxes": BDD_BOX_CLASSES, "seg": BDD_SEG_CLASSES},
        training_config=dump_json(image_cfg),
    )


def test_scores_of_an_export_of_images(image_cfg, image_export, tmp_path):
    scores = evaluate_export(image_cfg, image_export, out=tmp_path)
    assert {"AP", "mIoU", "num_seg_frames"} <= set(scores)
    assert scores["num_seg_frames"] > 0  # the masks were read


def test_images_are_predicted_at_their_own_size(image_cfg, image_export):
    dataset = DATASETS.build(raw_dataset(image_cfg.test_dataloader.dataset, is_rig=False))
    (found,) = predict_export(image_export, dataset, [0])
    image = cv2.imread(found.metainfo["img_path"])
    assert found.metainfo["ori_shape"] == image.shape[:2]
    np.testing.assert_array_equal(found.pred_sem_seg.sem_seg[0].numpy(), image[..., 2] > 127)
    assert found.pred_instances.bboxes.tolist() == [[0, 0, 8, 8], [0, 0, 8, 9], [2, 2, 6, 6]]


def test_a_submission_of_images(image_cfg, image_export, tmp_path):
    assert evaluate_export(image_cfg, image_export, submission=tmp_path, out=tmp_path) == {}
    assert {path.name for path in tmp_path.iterdir()} == {"det.json", "sem_seg"}

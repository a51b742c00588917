"""Items of the dataset: queue, motion, ground truth, randomness, subsets, maps."""

import json

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from torch.utils.data import DataLoader

from perception.datasets import (
    BEVRandomFlip,
    BEVRandomRotate,
    LoadBEVMap,
    LoadMultiViewImages,
    NuScenesBEVDataset,
    PackBEVInputs,
)
from perception.registry import DATASETS
from perception.structures import CLASS_NAMES, upstream_ego_motion
from perception.utils import DataError

GRID = {"x_range": [-15.0, 15.0], "y_range": [-30.0, 30.0], "resolution": 0.3}


def raw(results: dict) -> dict:
    """A pipeline that shows what the transforms get."""
    return results


def test_item_has_the_agreed_form(build):
    dataset = build(queue_length=3)
    item = dataset[5]
    inputs = item["inputs"]
    assert {name: (tuple(value.shape), value.dtype) for name, value in inputs.items()} == {
        "img": ((3, 6, 3, 18, 32), torch.uint8),
        "lidar2img": ((3, 6, 4, 4), torch.float32),
        "ego_motion": ((3, 18), torch.float32),
        "has_prev": ((3,), torch.bool),
    }
    sample = item["data_samples"]
    assert sample.sample_token == "scene-0103-s1"
    assert sample.prev_token == "scene-0103-s0"
    assert (sample.scene_name, sample.frame_idx, sample.img_shape) == ("scene-0103", 1, (18, 32))
    assert sample.map_location == "singapore-onenorth"
    assert sample.ego2global.shape == sample.lidar2ego.shape == sample.bev_aug.shape == (4, 4)
    assert sorted(sample.img_paths) == sorted(
        ["CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT"]
    )
    assert sample.gt_instances_3d.bboxes_3d.tensor.shape[1] == 9
    assert sample.gt_instances_3d.labels_3d.dtype == torch.int64
    assert sample.gt_bev_seg.sem_seg.shape == (1, 100, 200)
    assert sample.gt_bev_seg.sem_seg.dtype == torch.int64
    batch = pseudo_collate([item, dataset[6]])
    assert len(batch["data_samples"]) == len(batch["inputs"]["img"]) == 2


def test_registry_builds_it_by_name(tiny_root, index):
    config = {
        "type": "NuScenesBEVDataset",
        "ann_file": str(index),
        "data_root": str(tiny_root),
        "pipeline": [],
    }
    assert len(DATASETS.build(config)) == 8


def test_index_with_indentation_and_any_key_order_is_read(tiny_root, index, tmp_path):
    content = json.loads(index.read_text())
    path = tmp_path / "other.json"
    path.write_text(
        json.dumps({"data_list": content["data_list"], "note": [1], "metainfo": content["metainfo"]})
    )
    dataset = NuScenesBEVDataset(ann_file=path, data_root=tiny_root, pipeline=[])
    for idx, entry in enumerate(content["data_list"]):
        assert dataset.get_data_info(idx) == entry
    assert dataset.metainfo["version"] == "v1.0-mini"


@pytest.mark.parametrize("history", ["random", "consecutive"])
def test_queue_stays_in_its_scene_and_ends_with_the_current_frame(build, history):
    dataset = build(queue_length=3, history=history, pipeline=[raw])
    seen = set()
    for epoch in range(30):
        dataset.set_epoch(epoch)
        for idx in range(len(dataset)):
            frames = [int(frame["sample_token"][-1]) for frame in dataset[idx]["frames"]]
            scenes = {frame["sample_token"][:-3] for frame in dataset[idx]["frames"]}
            assert scenes == {dataset[idx]["scene_name"]}
            assert frames == sorted(frames)
            assert frames[-1] == idx % 4
            seen.add(tuple(frames))
    consecutive = {(0, 0, 0), (0, 0, 1), (0, 1, 2), (1, 2, 3)}
    expected = consecutive if history == "consecutive" else consecutive | {(0, 1, 3), (0, 2, 3)}
    assert seen == expected


def test_motion_is_that_against_the_frame_before_in_the_queue(build):
    dataset = build(queue_length=3, history="consecutive", pipeline=[raw])
    start, second, later = dataset[4], dataset[5], dataset[7]
    assert [frame["has_prev"] for frame in start["frames"]] == [False, False, False]
    assert [frame["has_prev"] for frame in second["frames"]] == [False, False, True]
    assert [frame["has_prev"] for frame in later["frames"]] == [False, True, True]
    for frame in start["frames"]:
        assert not frame["ego_motion"][:3].any()
    motion = later["frames"][2]["ego_motion"]
    poses = [np.array(dataset.get_data_info(idx)["ego2global"]) @ later["lidar2ego"] for idx in (6, 7)]
    np.testing.assert_allclose(motion[:3], poses[1][:3, 3] - poses[0][:3, 3])
    assert abs(motion[17] - np.degrees(0.1)) < 0.1
    assert not later["frames"][0]["ego_motion"][[0, 1, 2, 17]].any()


def test_upstreams_motion_by_switch(build):
    item, ours = (build(test_mode=True, pipeline=[raw], upstream_can_bus=flag)[5] for flag in (True, False))
    poses = [np.array(build(pipeline=[raw]).get_data_info(idx)["ego2global"]) for idx in (4, 5)]
    motion = item["frames"][0]["ego_motion"]
    np.testing.assert_allclose(motion, upstream_ego_motion(*poses, ours["frames"][0]["ego_motion"][7:16]))
    assert len(set(motion[3:7])) == 1
    assert len(set(ours["frames"][0]["ego_motion"][3:7])) == 4


def test_evaluation_item_is_one_frame_with_its_motion(build):
    dataset = build(queue_length=4, test_mode=True, pipeline=[raw])
    for idx in range(8):
        item = dataset[idx]
        assert len(item["frames"]) == 1
        assert item["frames"][0]["has_prev"] == (idx % 4 > 0)
        assert bool(item["frames"][0]["ego_motion"][:2].any()) == (idx % 4 > 0)


def test_training_keeps_valid_boxes_evaluation_keeps_all(build):
    train, test = build(pipeline=[raw]), build(pipeline=[raw], test_mode=True)
    # Sample 2 of a scene: car, pedestrian, cone, a car without points; and an animal, which no class has.
    assert sorted(train[2]["gt_labels_3d"].tolist()) == sorted(
        [CLASS_NAMES.index(name) for name in ("car", "pedestrian", "traffic_cone")]
    )
    assert len(test[2]["gt_labels_3d"]) == 4
    entry = train.get_data_info(2)["instances"][0]
    box = train[2]["gt_bboxes_3d"][0]
    assert box[2] == pytest.approx(entry["bbox_3d"][2] - entry["bbox_3d"][5] / 2)
    np.testing.assert_allclose(box[[0, 1, 3, 4, 5, 6]], np.array(entry["bbox_3d"])[[0, 1, 3, 4, 5, 6]])
    cone = train[2]["gt_labels_3d"].tolist().index(CLASS_NAMES.index("traffic_cone"))
    assert np.isnan(train[2]["gt_bboxes_3d"][cone, 7:]).all()


def test_class_names_choose_and_order_the_labels(build):
    dataset = build(class_names=("pedestrian", "car"), pipeline=[raw])
    assert sorted(dataset[2]["gt_labels_3d"].tolist()) == [0, 1]
    assert dataset.metainfo["classes"] == ("pedestrian", "car")


def test_unknown_class_is_named_with_a_suggestion(build):
    with pytest.raises(DataError, match=r"class 'pedestrain'.*Did you mean 'pedestrian'"):
        build(class_names=("car", "pedestrain"))


def _tensors(item: dict) -> list[torch.Tensor]:
    sample = item["data_samples"]
    boxes = sample.gt_instances_3d.bboxes_3d.tensor.nan_to_num(-99)
    return [*item["inputs"].values(), boxes, sample.gt_bev_seg.sem_seg]


def test_randomness_depends_on_seed_epoch_and_index_only(build):
    first, second, other = build(), build(), build(seed=1)
    np.random.default_rng(0)
    item = first[6]
    reference, image = _tensors(item), item["inputs"]["img"]
    np.random.seed(1)
    torch.manual_seed(5)
    second[0]
    assert all(torch.equal(a, b) for a, b in zip(reference, _tensors(second[6]), strict=True))
    assert not torch.equal(image, other[6]["inputs"]["img"])
    second.set_epoch(1)
    assert not torch.equal(image, second[6]["inputs"]["img"])
    second.set_epoch(0)
    assert torch.equal(image, second[6]["inputs"]["img"])


def test_persistent_workers_see_the_new_epoch(build):
    dataset, alone = build(), build()
    loader = DataLoader(dataset, num_workers=2, persistent_workers=True, collate_fn=pseudo_collate)
    for epoch in (0, 1, 2):
        dataset.set_epoch(epoch)
        alone.set_epoch(epoch)
        for idx, batch in enumerate(loader):
            assert torch.equal(batch["inputs"]["img"][0], alone[idx]["inputs"]["img"])


def test_subset_is_marked_and_keeps_its_history(build):
    whole = build(pipeline=[raw], history="consecutive")
    assert not whole.is_subset
    subset = build(pipeline=[raw], history="consecutive", indices=[3, 6])
    assert subset.is_subset
    assert subset.sample_tokens == ["scene-0061-s3", "scene-0103-s2"]
    assert subset.scene_tokens == ["token-scene-0061", "token-scene-0103"]
    assert [f["sample_token"] for f in subset[0]["frames"]] == [f["sample_token"] for f in whole[3]["frames"]]
    assert len(build(pipeline=[raw], indices=3)) == 3
    with pytest.raises(IndexError):
        subset[2]
    with pytest.raises(ValueError, match="selects no sample"):
        build(pipeline=[raw], indices=0)


def test_map_cache_gives_the_same_target_and_survives_damage(build, tmp_path, caplog):
    cache = tmp_path / "maps"
    pipeline = [
        LoadMultiViewImages(),
        LoadBEVMap(grid=GRID, cache_dir=str(cache)),
        PackBEVInputs(),
    ]
    dataset = build(pipeline=pipeline, test_mode=True)
    drawn = dataset[1]["data_samples"].gt_bev_seg.sem_seg
    assert len(drawn.unique()) >= 3
    (path,) = cache.rglob("*.png")
    content = path.read_bytes()
    assert torch.equal(dataset[1]["data_samples"].gt_bev_seg.sem_seg, drawn)
    for damaged in (content[:100], b"", bytes([content[0], content[1] ^ 1]) + content[2:]):
        path.write_bytes(damaged)
        caplog.clear()
        assert torch.equal(dataset[1]["data_samples"].gt_bev_seg.sem_seg, drawn)
        assert "is damaged and is drawn again" in caplog.text
        assert path.read_bytes() == content
    assert list(cache.rglob(".*")) == []


def test_cached_target_is_really_used(build, tmp_path):
    cache = tmp_path / "maps"
    dataset = build(
        pipeline=[LoadMultiViewImages(), LoadBEVMap(grid=GRID, cache_dir=str(cache)), PackBEVInputs()],
        test_mode=True,
    )
    expected = [dataset[idx]["data_samples"].gt_bev_seg.sem_seg for idx in (1, 2)]
    first, second = (next(cache.rglob(f"scene-0061-s{number}_*.png")) for number in (1, 2))
    first.write_bytes(second.read_bytes())
    assert not torch.equal(expected[0], expected[1])
    assert torch.equal(dataset[1]["data_samples"].gt_bev_seg.sem_seg, expected[1])


def test_unwritable_cache_is_reported_and_the_target_drawn(build, tmp_path, caplog):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the folder should be")
    pipeline = [LoadMultiViewImages(), LoadBEVMap(grid=GRID, cache_dir=str(blocked)), PackBEVInputs()]
    dataset = build(pipeline=pipeline, test_mode=True)
    assert dataset[1]["data_samples"].gt_bev_seg.sem_seg.any()
    assert "cannot be cached" in caplog.text


def test_augmented_map_fits_the_augmented_boxes(build):
    """A point on the divider and a box keep their relation, whatever the augmentation."""
    dataset = build(
        pipeline=[
            LoadMultiViewImages(),
            BEVRandomFlip(),
            BEVRandomRotate(max_angle=180.0),
            LoadBEVMap(grid={**GRID, "x_range": [-30, 30]}, cache_dir=None),
            raw,
        ],
        test_mode=True,
    )
    grid_columns, hits = 200, 0
    for epoch in range(6):
        dataset.set_epoch(epoch)
        for idx in (0, 1):
            item = dataset[idx]
            lidar2global = item["ego2global"] @ item["lidar2ego"] @ np.linalg.inv(item["bev_aug"])
            divider = np.column_stack(
                [np.linspace(185, 230, 40), np.full(40, 210.0), np.zeros(40), np.ones(40)]
            )
            x, y, *_ = np.linalg.inv(lidar2global) @ divider.T
            columns, rows = np.round((y + 30) / 0.3 - 0.5), np.round((30 - x) / 0.3 - 0.5)
            inside = (columns >= 0) & (columns < grid_columns) & (rows >= 0) & (rows < 200)
            values = item["gt_bev_seg"][rows[inside].astype(int), columns[inside].astype(int)]
            away = np.abs(divider[inside, 0] - 214) > 4  # the crossing
            assert (values[away] == 1).all()
            hits += away.sum()
    assert hits > 100


def test_missing_map_is_an_error_or_left_out_with_a_warning(build, tiny_copy, caplog):
    path = tiny_copy / "maps" / "expansion" / "singapore-onenorth.json"
    path.unlink()
    for cache_dir in (None, "auto"):
        dataset = build(
            data_root=tiny_copy,
            pipeline=[LoadMultiViewImages(), LoadBEVMap(grid=GRID, cache_dir=cache_dir), PackBEVInputs()],
        )
        with pytest.raises(DataError, match=r"map expansion v1\.3.*singapore-onenorth\.json"):
            dataset[0]
    pipeline = [LoadMultiViewImages(), LoadBEVMap(grid=GRID, on_missing="skip"), PackBEVInputs()]
    dataset = build(data_root=tiny_copy, pipeline=pipeline)
    assert all("gt_bev_seg" not in dataset[index]["data_samples"] for index in (0, 1))
    told = [record.message for record in caplog.records if "no map target" in record.message]
    assert len(told) == 1
    assert str(path) in told[0]


@pytest.mark.parametrize(("filled", "last"), [(False, "boundary"), (True, "drivable_area")])
def test_map_classes_follow_the_drawing_rule(build, filled, last):
    dataset = build(pipeline=[{"type": LoadBEVMap, "grid": GRID, "filled": filled, "cache_dir": None}])
    assert dataset.metainfo["map_classes"] == ("background", "divider", "ped_crossing", last)

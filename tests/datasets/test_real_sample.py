"""One real nuScenes sample, with answers that nobody here computed (the stored `center_2d` and `num_lidar_pts`)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from perception.datasets import (
    LoadBEVMap,
    LoadMultiViewImages,
    NuScenesBEVDataset,
    ObjectRangeFilter,
    PackBEVInputs,
    ResizeMultiView,
    prepare_image_cache,
)
from perception.structures import CAMERA_NAMES, CLASS_NAMES, points_in_boxes, project_points


@pytest.fixture(scope="module")
def sample_root(shared_root) -> Path:
    return shared_root / "data" / "nuscenes_sample"


@pytest.fixture(scope="module")
def entry(sample_root) -> dict:
    return json.loads((sample_root / "info.json").read_text())["data_list"][0]


@pytest.fixture(scope="module")
def item(sample_root) -> dict:
    """Frames and boxes before packing, every instance kept."""
    dataset = NuScenesBEVDataset(
        ann_file="info.json", data_root=sample_root, pipeline=[lambda results: results], test_mode=True
    )
    return dataset[0]


@pytest.fixture(scope="module")
def all_boxes(entry) -> torch.Tensor:
    """All 69 boxes, the ignored one too, through the same conversion: centre → bottom."""
    boxes = torch.tensor([instance["bbox_3d"] for instance in entry["instances"]], dtype=torch.float64)
    boxes[:, 2] -= boxes[:, 5] / 2
    return boxes


def test_projected_centres_equal_the_stored_ones(entry, item):
    worst, count = 0.0, 0
    for camera, instances in entry["cam_instances"].items():
        lidar2img = item["frames"][0]["lidar2img"][CAMERA_NAMES.index(camera)]
        boxes = item["gt_bboxes_3d"]
        centres = boxes[:, :3] + np.array([0, 0, 0.5]) * boxes[:, 5:6]
        uv, depth = project_points(centres, lidar2img)
        for instance in instances:
            if instance["bbox_label_3d"] < 0:
                continue
            label = CLASS_NAMES.index(_category(instance["bbox_label_3d"]))
            errors = np.abs(uv - np.array(instance["center_2d"])).max(axis=1)
            errors[item["gt_labels_3d"] != label] = np.inf
            nearest = int(errors.argmin())
            worst, count = max(worst, float(errors[nearest])), count + 1
            assert depth[nearest] == pytest.approx(instance["depth"], abs=1e-5)
    assert count >= 80
    assert worst < 1e-3


def _category(label: int) -> str:
    # The order of the stored index (mmdet3d's), which differs from ours.
    names = "car truck trailer bus construction_vehicle bicycle motorcycle pedestrian traffic_cone barrier"
    return names.split()[label]


def test_labels_are_mapped_by_name(item):
    labels, numbers = np.unique(item["gt_labels_3d"], return_counts=True)
    counts = {CLASS_NAMES[label]: int(number) for label, number in zip(labels, numbers, strict=True)}
    assert counts == {
        "pedestrian": 30,
        "barrier": 22,
        "car": 8,
        "traffic_cone": 3,
        "truck": 2,
        "bus": 1,
        "construction_vehicle": 1,
        "bicycle": 1,
    }


def test_points_counted_inside_boxes_equal_the_stored_numbers(sample_root, entry, all_boxes):
    raw = np.fromfile(sample_root / entry["lidar_points"]["lidar_path"], dtype=np.float32).reshape(-1, 5)
    points = torch.from_numpy(raw[:, :3]).double()
    stored = torch.tensor([instance["num_lidar_pts"] for instance in entry["instances"]])

    def num_equal(boxes: torch.Tensor) -> int:
        return int((points_in_boxes(points, boxes).sum(dim=0) == stored).sum())

    assert len(stored) == 69
    assert num_equal(all_boxes) == 61
    flipped, swapped, raised = all_boxes.clone(), all_boxes.clone(), all_boxes.clone()
    flipped[:, 6] *= -1
    swapped[:, [3, 4]] = swapped[:, [4, 3]]
    raised[:, 2] += raised[:, 5] / 2
    assert num_equal(flipped) == 55
    assert num_equal(swapped) == 36
    assert 14 <= num_equal(raised) <= 24


def test_the_dataset_gives_these_boxes(entry, item, all_boxes):
    kept = [idx for idx, instance in enumerate(entry["instances"]) if instance["bbox_label_3d"] >= 0]
    np.testing.assert_allclose(item["gt_bboxes_3d"][:, :7], all_boxes[kept].numpy())


def test_images_go_through_the_whole_pipeline(sample_root):
    dataset = NuScenesBEVDataset(
        ann_file="info.json",
        data_root=sample_root,
        pipeline=[
            LoadMultiViewImages(target_size=(512, 288)),
            ResizeMultiView(size=(512, 288)),
            ObjectRangeFilter(pc_range=(-51.2, -51.2, -5, 51.2, 51.2, 3)),
            LoadBEVMap(grid={}, on_missing="skip"),
            PackBEVInputs(),
        ],
    )
    item = dataset[0]
    assert item["inputs"]["img"].shape == (3, 6, 3, 288, 512)
    assert not item["inputs"]["has_prev"].any()
    means = item["inputs"]["img"].float().mean(dim=(-1, -2))
    assert (means > 40).all()
    assert (means < 220).all()
    sample = item["data_samples"]
    assert sample.scene_token == sample.sample_token == "ca9a282c9e77460f8360f564131a8af5"
    assert (sample.prev_token, sample.map_location) == ("", "")
    assert "gt_bev_seg" not in sample
    assert 40 < len(sample.gt_instances_3d.labels_3d) < 65  # the range leaves out some of the 65
    assert torch.isfinite(sample.gt_instances_3d.bboxes_3d.tensor[:, :7]).all()


def test_valid_boxes_are_those_that_mmdet3d_keeps(sample_root):
    dataset = NuScenesBEVDataset(
        ann_file="info.json", data_root=sample_root, pipeline=[lambda results: results]
    )
    # mmdet3d keeps 66 of the 69: three have no points. One of the 66 is of no class (label -1) and is dropped here.
    assert len(dataset[0]["gt_labels_3d"]) == 66 - 1


def test_reduced_decoding_keeps_the_projection(sample_root):
    def load(size: tuple[int, int] | None) -> dict:
        steps = [LoadMultiViewImages(target_size=size), ResizeMultiView(size=(512, 288)), PackBEVInputs()]
        dataset = NuScenesBEVDataset(
            ann_file="info.json", data_root=sample_root, pipeline=steps, test_mode=True
        )
        return dataset[0]["inputs"]

    full, reduced = load(None), load((512, 288))
    torch.testing.assert_close(full["lidar2img"], reduced["lidar2img"])
    difference = (full["img"].float() - reduced["img"].float()).abs().mean()
    shifted = (full["img"][..., 1:].float() - reduced["img"][..., :-1].float()).abs().mean()
    assert difference < 8
    assert difference < 0.7 * shifted


@pytest.mark.parametrize(("image_format", "mean", "largest"), [("bmp", 0, 0), ("jpeg", 1.4, 24)])
def test_cached_images_are_those_of_the_pipeline(sample_root, tmp_path, image_format, mean, largest):
    """The error that docs/loading.md states; the index does not say how large the images are."""
    size, folder = (512, 288), str(tmp_path / "image_cache")
    index = sample_root / "info.json"
    prepare_image_cache(
        sample_root, [index], size=size, cache_dir=folder, image_format=image_format, progress=False
    )

    def load(**options) -> dict:
        steps = [
            LoadMultiViewImages(target_size=size, **options),
            ResizeMultiView(size=size),
            PackBEVInputs(),
        ]
        dataset = NuScenesBEVDataset(
            ann_file="info.json", data_root=sample_root, pipeline=steps, test_mode=True
        )
        return dataset[0]["inputs"]

    plain, cached = load(), load(cache_dir=folder)
    assert torch.equal(plain["lidar2img"], cached["lidar2img"])
    error = (plain["img"].float() - cached["img"].float()).abs()
    assert error.mean() <= mean
    assert error.max() <= largest

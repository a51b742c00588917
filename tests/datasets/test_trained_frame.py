"""Ground truth is made for the trained frame alone; history frames only load images, each of them once."""

from collections import Counter

import pytest

from perception.datasets import (
    LoadBEVMap,
    LoadMultiViewImages,
    NuScenesBEVDataset,
    NuScenesVectorMap,
    ObjectRangeFilter,
    PackBEVInputs,
    ResizeMultiView,
    nuscenes_dataset,
)
from perception.datasets.transforms import images
from perception.structures import CAMERA_NAMES

GRID = {"x_range": (-15.0, 15.0), "y_range": (-30.0, 30.0), "resolution": 0.5}


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> dict[str, list]:
    """What the dataset really does, written down while it does it: files read, maps drawn, boxes made."""
    done: dict[str, list] = {"read": [], "drawn": [], "boxes": []}
    read, draw, boxes = images.read_content, NuScenesVectorMap.rasterise, nuscenes_dataset.ground_truth

    def counted_read(path, **options):
        done["read"].append(str(path))
        return read(path, **options)

    def counted_draw(self, grid, lidar2global, **options):
        done["drawn"].append(lidar2global)
        return draw(self, grid, lidar2global, **options)

    def counted_boxes(info, **options):
        done["boxes"].append(info["token"])
        return boxes(info, **options)

    monkeypatch.setattr(images, "read_content", counted_read)
    monkeypatch.setattr(NuScenesVectorMap, "rasterise", counted_draw)
    monkeypatch.setattr(nuscenes_dataset, "ground_truth", counted_boxes)
    return done


@pytest.fixture
def dataset(synthetic_root, nano_index) -> NuScenesBEVDataset:
    return NuScenesBEVDataset(
        ann_file=str(nano_index / "v1.0-mini_mini_train.json"),
        data_root=str(synthetic_root),
        queue_length=3,
        history="consecutive",
        pipeline=[
            LoadMultiViewImages(target_size=(88, 50)),
            ResizeMultiView(size=(88, 50)),
            ObjectRangeFilter(pc_range=(-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)),
            LoadBEVMap(grid=GRID, cache_dir=None),
            PackBEVInputs(),
        ],
    )


@pytest.mark.parametrize(("idx", "num_frames"), [(0, 1), (1, 2), (2, 3), (3, 3)])
def test_one_map_one_set_of_boxes_and_each_image_once(dataset, work, idx, num_frames):
    item = dataset[idx]
    token = dataset.sample_tokens[idx]
    assert item["inputs"]["img"].shape[:2] == (3, len(CAMERA_NAMES))
    assert item["data_samples"].sample_token == token
    assert work["boxes"] == [token]
    assert len(work["drawn"]) == 1
    truth = item["data_samples"].metainfo
    assert (work["drawn"][0] == truth["ego2global"] @ truth["lidar2ego"]).all()
    # At the start of a scene the earliest frame stands in for those before it: in the item thrice, decoded once.
    counts = Counter(work["read"])
    assert len(counts) == num_frames * len(CAMERA_NAMES)
    assert set(counts.values()) == {1}


def test_a_repeated_frame_is_the_same_in_all_its_places(dataset):
    inputs = dataset[0]["inputs"]
    assert inputs["img"].float().std() > 10
    for key in ("img", "lidar2img"):
        assert (inputs[key][0] == inputs[key][1]).all()
        assert (inputs[key][0] == inputs[key][2]).all()

"""Defects (F9): samples, indexes and options that are refused, with what the message names."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from mmengine.dataset import pseudo_collate
from torch.utils.data import DataLoader

from perception.datasets import LoadMultiViewImages, NuScenesBEVDataset, PackBEVInputs, read_first_sample
from perception.utils import DataError


@pytest.fixture
def damaged(build, tiny_copy):
    """Dataset whose sample 2 (the last of no queue but its own with queue_length 1) has a cut JPEG."""
    path = next((tiny_copy / "samples" / "CAM_BACK").glob("scene-0061-s2-*.jpg"))
    path.write_bytes(path.read_bytes()[:200])

    def make(**options) -> tuple[NuScenesBEVDataset, Path]:
        options.setdefault("queue_length", 1)
        options.setdefault("pipeline", [LoadMultiViewImages(), PackBEVInputs()])
        return build(data_root=tiny_copy, **options), path

    return make


def test_strict_names_sample_and_path(damaged):
    dataset, path = damaged()
    with pytest.raises(DataError, match="cut short") as caught:
        dataset[2]
    assert caught.value.sample_token == "scene-0061-s2"
    assert caught.value.path == str(path)
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), DataError)  # noqa: S301 - as loader workers do


def test_skip_takes_the_next_sample_and_counts(damaged, caplog):
    dataset, _ = damaged(on_error="skip")
    for _ in range(3):
        assert dataset[2]["data_samples"].sample_token == "scene-0061-s3"
    assert dataset.num_skipped == 1
    assert caplog.text.count("sample replaced by the next one") == 1
    assert dataset[1]["data_samples"].sample_token == "scene-0061-s1"


def test_skip_gives_up_beyond_one_in_a_thousand(damaged, tiny_copy):
    dataset, _ = damaged(on_error="skip")
    next((tiny_copy / "samples" / "CAM_FRONT").glob("scene-0103-s0-*.jpg")).unlink()
    dataset[2]
    with pytest.raises(DataError, match="2 defective samples, more than the 1") as caught:
        dataset[4]
    assert caught.value.sample_token == "scene-0103-s0"


def test_skip_counts_across_workers(damaged):
    dataset, _ = damaged(on_error="skip")
    loader = DataLoader(dataset, num_workers=2, collate_fn=pseudo_collate)
    tokens = [batch["data_samples"][0].sample_token for batch in loader]
    assert tokens == [f"scene-0061-s{i}" for i in (0, 1, 3, 3)] + [f"scene-0103-s{i}" for i in range(4)]
    assert dataset.num_skipped == 1


def test_evaluation_never_skips(damaged):
    dataset, _ = damaged(on_error="skip", test_mode=True)
    with pytest.raises(DataError, match="cut short"):
        dataset[2]


def test_missing_image_is_named_by_the_worker(damaged, tiny_copy):
    dataset, path = damaged()
    path.unlink()
    loader = DataLoader(dataset, num_workers=1, collate_fn=pseudo_collate)
    with pytest.raises(DataError, match="the image is missing"):
        list(loader)


def test_image_of_another_size_is_refused(build, tiny_copy, index):
    import cv2

    path = next((tiny_copy / "samples" / "CAM_FRONT").glob("scene-0061-s0-*.jpg"))
    cv2.imwrite(str(path), np.zeros((40, 64, 3), np.uint8))
    dataset = build(data_root=tiny_copy, pipeline=[LoadMultiViewImages(), PackBEVInputs()])
    with pytest.raises(DataError, match="64×40 at 1/1, but the index says 64×36"):
        dataset[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such index"),
        ("{", "not a readable index"),
        ("[]", "not a readable index"),
        ('{"metainfo": {}}', "has no data_list"),
        ('{"metainfo": {}, "data_list": [1]}', "sample 0 is not an object"),
        ('{"metainfo": {}, "data_list": []}', "holds no sample"),
        ('{"metainfo": {}, "data_list": [{"token": "a"} {"token": "b"}]}', "not a readable index"),
    ],
)
def test_unusable_index_is_named(tmp_path, content, message):
    path = tmp_path / "index.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        NuScenesBEVDataset(ann_file=path, data_root=tmp_path, pipeline=[])
    assert caught.value.path == str(path)


def test_can_bus_of_either_layout_is_read_and_others_are_refused(tiny_root, index, tmp_path):
    content = json.loads(index.read_text())
    nine = [0.1, 0.2, 9.8, 0.0, 0.0, 0.3, 5.0, 0.0, 0.0]
    for number, can in enumerate([nine, [*range(7), *nine, 0.5, 28.6], nine[:5], "x", [float("nan")] * 9]):
        content["data_list"][number]["can_bus"] = can
    path = tmp_path / "index.json"
    path.write_text(json.dumps(content))
    dataset = NuScenesBEVDataset(
        ann_file=path, data_root=tiny_root, pipeline=[lambda results: results], test_mode=True
    )
    for number in (0, 1):
        np.testing.assert_allclose(dataset[number]["frames"][0]["ego_motion"][7:16], nine)
    for number in (2, 3, 4):
        with pytest.raises(DataError, match="can_bus must be 9 finite numbers") as caught:
            dataset[number]
        assert caught.value.sample_token == content["data_list"][number]["token"]


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), None])
@pytest.mark.parametrize(
    ("path", "message"),
    [
        (("images", "CAM_BACK", "lidar2cam"), "lidar2cam of CAM_BACK .* there is no lidar2img"),
        (("images", "CAM_BACK", "cam2img"), "cam2img of CAM_BACK .* there is no lidar2img"),
        (("ego2global",), "ego2global .* there is no ego_motion"),
        (("lidar_points", "lidar2ego"), "lidar2ego .* there is no ego_motion"),
    ],
)
def test_a_matrix_that_is_not_finite_is_named(build, index, tmp_path, path, message, value):
    content = json.loads(index.read_text())
    entry = content["data_list"][2]
    for key in path:
        entry = entry[key]
    entry[1][2] = value
    changed = tmp_path / "index.json"
    changed.write_text(json.dumps(content))
    for number in (2, 3):  # the sample itself, and the one that has it as its history
        with pytest.raises(DataError, match=message) as caught:
            build(ann_file=changed, queue_length=2, history="consecutive")[number]
        assert caught.value.sample_token == content["data_list"][2]["token"]


def test_first_sample_is_read_without_the_rest(index, tmp_path):
    content = json.loads(index.read_text())
    path = tmp_path / "cut.json"
    text = json.dumps(content)
    path.write_text(text[: len(text) // 2])
    assert read_first_sample(path) == content["data_list"][0]
    for text, message in (('{"data_list": []}', "holds no sample"), ("[]", "not a readable index")):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            read_first_sample(path)


def test_pickled_index_is_refused_unread(tmp_path):
    marker = tmp_path / "marker"

    class Bomb:
        def __reduce__(self):
            return (Path.touch, (marker,))

    path = tmp_path / "infos.pkl"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError, match="refused"):
        NuScenesBEVDataset(ann_file=path, data_root=tmp_path, pipeline=[])
    renamed = path.rename(tmp_path / "infos.json")
    with pytest.raises(DataError, match="not a"):
        NuScenesBEVDataset(ann_file=renamed, data_root=tmp_path, pipeline=[])
    assert not marker.exists()


def test_index_without_a_camera_is_named(build, index, tmp_path):
    content = json.loads(index.read_text())
    del content["data_list"][0]["images"]["CAM_BACK"]
    path = tmp_path / "index.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"CAM_BACK is not in the index.*scene-0061-s0"):
        build(ann_file=path)[0]


def test_scattered_scenes_are_refused(build, index, tmp_path):
    content = json.loads(index.read_text())
    content["data_list"].append(content["data_list"].pop(1))
    path = tmp_path / "index.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="not consecutive"):
        build(ann_file=path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queue_length": 0}, "queue_length must be at least 1"),
        ({"history": "recent"}, "history must be one of"),
        ({"on_error": "skp"}, "Did you mean 'skip'"),
    ],
)
def test_wrong_options_are_refused(build, options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)

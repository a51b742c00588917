"""Resized copies of the images: equal to resizing in the pipeline, made once, and never trusted blindly."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from perception.datasets import (
    LoadMultiViewImages,
    NuScenesBEVDataset,
    PackBEVInputs,
    ResizeMultiView,
    image_cache_writer,
    prepare_image_cache,
)
from perception.datasets._cache_files import CacheSettings, SourceRecord, join_copy, split_copy
from perception.datasets.image_cache import ImageCache, cache_command
from perception.utils import DataError, write_json_atomic

SIZE = (88, 50)  # the world's images are 704 × 396: decoded at 1/4 to 176 × 99, then resized
NUM_IMAGES = 48


@pytest.fixture
def indexes(nano_index: Path) -> list[Path]:
    return sorted(nano_index.glob("*.json"))


@pytest.fixture
def make(synthetic_root: Path, indexes: list[Path], tmp_path: Path) -> Callable[..., Path]:
    """Make a cache of the small world, with options changed; returns its `cache_dir`."""

    def run(**options):
        options = {"size": SIZE, "cache_dir": tmp_path / "image_cache", "progress": False, **options}
        return prepare_image_cache(options.pop("root", synthetic_root), indexes, **options).folder.parent

    return run


def dataset_of(root: Path, index: Path, *, interpolation: str = "bilinear", size=SIZE, **loading):
    return NuScenesBEVDataset(
        ann_file=str(index),
        data_root=str(root),
        pipeline=[
            LoadMultiViewImages(target_size=SIZE, **loading),
            ResizeMultiView(size=size, interpolation=interpolation),
            PackBEVInputs(),
        ],
    )


def inputs_of(*args, **options) -> dict[str, torch.Tensor]:
    return dataset_of(*args, **options)[1]["inputs"]


# ------------------------------------------------------------------------------------------------ same items


@pytest.mark.parametrize("interpolation", ["bilinear", "area"])
def test_a_lossless_cache_gives_equal_items(make, synthetic_root, indexes, interpolation):
    folder = make(image_format="bmp", interpolation=interpolation)
    plain = inputs_of(synthetic_root, indexes[0], interpolation=interpolation)
    cached = inputs_of(synthetic_root, indexes[0], interpolation=interpolation, cache_dir=str(folder))
    assert plain["img"].shape == (3, 6, 3, 50, 88)
    assert plain.keys() == cached.keys()
    for name, value in plain.items():
        assert torch.equal(value, cached[name]), name


def test_a_jpeg_cache_differs_by_compression_alone(make, synthetic_root, indexes):
    plain = inputs_of(synthetic_root, indexes[0])
    folder = make()
    cached = inputs_of(synthetic_root, indexes[0], cache_dir=str(folder))
    assert torch.equal(plain["lidar2img"], cached["lidar2img"])
    error = (plain["img"].float() - cached["img"].float()).abs()
    assert 0 < error.mean() < 2
    assert error.max() <= 40
    shutil.rmtree(folder)
    worse = inputs_of(synthetic_root, indexes[0], cache_dir=str(make(quality=50)))
    assert (plain["img"].float() - worse["img"].float()).abs().mean() > 1.5 * error.mean()


def test_lidar2img_of_odd_sizes_is_that_of_the_pipeline(tmp_path):
    """1/4 of 165 × 91 is rounded up to 42 × 23, so the scale isn't the ratio of the sizes alone."""
    image = np.random.default_rng(0).integers(0, 255, (91, 165, 3), dtype=np.uint8)
    (tmp_path / "samples").mkdir()
    cv2.imwrite(str(tmp_path / "samples" / "a.jpg"), image)
    cameras = {camera: {"img_path": "samples/a.jpg", "width": 165, "height": 91} for camera in ("CAM_A",)}
    write_json_atomic(tmp_path / "index.json", {"metainfo": {}, "data_list": [{"images": cameras}]})
    report = prepare_image_cache(
        tmp_path, [tmp_path / "index.json"], size=(40, 22), image_format="bmp", progress=False
    )
    assert report.folder == tmp_path / "perception_index" / "image_cache" / "40x22"
    assert (report.num_images, report.num_made) == (1, 1)
    source = tmp_path / "samples" / "a.jpg"
    cached = ImageCache(cache_dir="auto", data_root=tmp_path, size=(40, 22)).read(source)
    assert (cached.source_size, cached.reduction) == ((165, 91), 4)
    expected = np.diag([40 / 42, 22 / 23, 1, 1]) @ np.diag([1 / 4, 1 / 4, 1, 1])
    np.testing.assert_array_equal(cached.scale(np.eye(4)), expected)


# ------------------------------------------------------------------------------------------------ making it


def test_manifest_and_layout(make, synthetic_root, indexes):
    folder = make(interpolation="area", quality=90) / "88x50"
    manifest = json.loads((folder / "cache.json").read_text())
    versions, num_bytes = manifest.pop("versions"), manifest.pop("num_bytes")
    assert manifest == {
        "format_version": 1,
        "size": [88, 50],
        "interpolation": "area",
        "format": "jpeg",
        "quality": 90,
        "num_images": NUM_IMAGES,
        "source_sizes": [[704, 396]],
    }
    assert versions["opencv"] == cv2.__version__
    copies = {str(path.relative_to(folder)) for path in folder.rglob("*.jpg")}
    images = {str(path.relative_to(synthetic_root)) for path in synthetic_root.glob("samples/CAM_*/*.jpg")}
    assert copies == images
    assert num_bytes == sum((folder / name).stat().st_size for name in copies)
    name = sorted(copies)[0]
    record = json.loads((folder / name).read_bytes().splitlines()[-1])
    assert record["source_bytes"] == (synthetic_root / name).stat().st_size
    assert record["source_size"] == [704, 396]
    assert cv2.imread(str(folder / name)).shape == (50, 88, 3)  # any viewer shows a copy


def test_a_second_run_makes_what_is_missing_changed_or_damaged(synthetic_root, indexes, tmp_path):
    root = Path(shutil.copytree(synthetic_root, tmp_path / "world"))
    cache_dir = tmp_path / "image_cache"

    def run() -> list[str]:
        before = {path: path.stat().st_mtime_ns for path in cache_dir.rglob("*.jpg")}
        report = prepare_image_cache(root, indexes, size=SIZE, cache_dir=cache_dir, progress=False)
        assert report.num_images == NUM_IMAGES
        made = [path for path in cache_dir.rglob("*.jpg") if before.get(path) != path.stat().st_mtime_ns]
        assert report.num_made == len(made)
        assert not list(cache_dir.rglob(".*"))
        return sorted(path.name for path in made)

    assert len(run()) == NUM_IMAGES
    assert run() == []
    names = sorted(path.name for path in cache_dir.rglob("*.jpg"))
    copies = {path.name: path for path in cache_dir.rglob("*.jpg")}
    originals = {path.name: path for path in root.glob("samples/CAM_*/*.jpg")}
    good = copies[names[1]].read_bytes()
    copies[names[0]].unlink()
    copies[names[1]].write_bytes(good[: len(good) // 2])
    copies[names[2]].write_bytes(good[:300] + b"\x00" + good[301:])
    cv2.imwrite(str(originals[names[3]]), np.zeros((396, 704, 3), np.uint8))
    content = originals[names[4]].read_bytes()
    originals[names[4]].write_bytes(content)  # as many bytes, another time
    assert run() == names[:5]
    assert copies[names[1]].read_bytes() == good
    assert cv2.imread(str(copies[names[3]])).max() == 0
    assert run() == []
    originals[names[5]].unlink()  # nothing to compare with: the copy stays
    assert run() == []


def test_an_interrupted_run_leaves_whole_copies_and_goes_on(
    make, synthetic_root, indexes, tmp_path, monkeypatch
):
    real, calls = os.replace, []

    def replace(source, target):
        calls.append(target)
        if len(calls) == 20:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(image_cache_writer.os, "replace", replace)
    monkeypatch.setattr(
        image_cache_writer, "write_json_atomic", lambda path, content: path.write_text(json.dumps(content))
    )
    with pytest.raises(KeyboardInterrupt):
        make()
    monkeypatch.undo()
    folder = tmp_path / "image_cache" / "88x50"
    there = list(folder.rglob("*.jpg"))
    assert len(there) == 19
    assert all(split_copy(path.read_bytes()) for path in there)
    assert not list(folder.rglob(".*"))
    with pytest.raises(
        DataError, match=r"unfinished; `perception data prepare .* --cache 88x50` makes the rest"
    ):
        inputs_of(synthetic_root, indexes[0], cache_dir=str(folder.parent))
    report = prepare_image_cache(synthetic_root, indexes, size=SIZE, cache_dir=folder.parent, progress=False)
    assert report.num_made == NUM_IMAGES - 19


def test_what_a_killed_run_was_writing_is_removed_when_it_is_old(make, tmp_path):
    folder = make() / "88x50" / "samples" / "CAM_BACK"
    old, new = folder / ".a.jpg.tmp-1", folder / ".b.jpg.tmp-2"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (1e9, 1e9))
    make()
    assert not old.exists()
    assert new.exists()
    assert json.loads((tmp_path / "image_cache/88x50/cache.json").read_text())["num_images"] == NUM_IMAGES


@pytest.mark.slow
def test_processes_make_the_same_files(make, tmp_path, monkeypatch):
    one = make()
    monkeypatch.setattr(image_cache_writer, "_IMAGES_PER_WORKER", 10)
    two = make(cache_dir=tmp_path / "two" / "image_cache", num_workers=2)
    files = [sorted(path.relative_to(folder) for path in folder.rglob("*.jpg")) for folder in (one, two)]
    assert files[0] == files[1]
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in files[0])


def test_damaged_and_missing_originals_are_named_and_the_others_made(synthetic_root, indexes, tmp_path):
    root = Path(shutil.copytree(synthetic_root, tmp_path / "world"))
    paths = sorted(root.glob("samples/CAM_FRONT/*.jpg"))
    paths[0].write_bytes(paths[0].read_bytes()[:2000])
    paths[1].unlink()
    with pytest.raises(DataError, match=f"2 of {NUM_IMAGES} images could not be copied") as caught:
        prepare_image_cache(root, indexes, size=SIZE, progress=False)
    assert all(str(path) in str(caught.value) for path in paths[:2])
    assert len(list(root.glob("perception_index/image_cache/88x50/**/*.jpg"))) == NUM_IMAGES - 2


def test_a_disk_that_is_too_small_is_told_before_the_start(make, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=NUM_IMAGES * 4096 - 1)
    monkeypatch.setattr(image_cache_writer.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match=r"48 copies at 88x50 take about 0\.00 GB.*--cache-dir"):
        make()
    assert not list(tmp_path.rglob("*.jpg"))
    monkeypatch.undo()
    make()
    monkeypatch.setattr(image_cache_writer.shutil, "disk_usage", lambda path: usage._replace(free=0))
    make()  # all there: nothing more is needed


def test_other_settings_in_the_same_place_are_refused(make):
    make()
    make(cache_dir=make().parent / "other")
    with pytest.raises(DataError, match="made with jpeg 95 and bilinear; this one would have bmp and area"):
        make(image_format="bmp", interpolation="area")


def test_copies_larger_than_the_images_are_refused(make, tmp_path):
    with pytest.raises(DataError, match=r"704×396, smaller than the cache's 800x450"):
        make(size=(800, 450))
    assert not (tmp_path / "image_cache").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (0, 5)}, "positive"),
        ({"interpolation": "cubic"}, "interpolation"),
        ({"image_format": "png"}, "image_format"),
        ({"quality": 0}, "quality"),
        ({"num_workers": 0}, "num_workers"),
    ],
)
def test_options_out_of_range(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


# ------------------------------------------------------------------------------------------------ using it


def test_the_originals_are_not_needed(make, synthetic_root, indexes, tmp_path):
    folder = str(make())
    plain = inputs_of(synthetic_root, indexes[0], cache_dir=folder)
    elsewhere = inputs_of(tmp_path / "empty", indexes[0], cache_dir=folder)
    assert torch.equal(plain["img"], elsewhere["img"])


def test_a_missing_cache_names_the_command_and_what_is_there(make, synthetic_root, indexes, tmp_path):
    folder = make(size=(100, 60))
    command = rf"`perception data prepare {synthetic_root} --out {tmp_path} --cache 88x50`"
    with pytest.raises(
        DataError, match=rf"no image cache of 88×50 \(there is 100x60\); make it by {command}"
    ):
        inputs_of(synthetic_root, indexes[0], cache_dir=str(folder))
    with pytest.raises(DataError, match="cache_dir is the folder above"):
        inputs_of(synthetic_root, indexes[0], cache_dir=str(folder / "100x60"))


def test_stale_missing_and_damaged_copies_are_named(make, synthetic_root, indexes, tmp_path):
    root = Path(shutil.copytree(synthetic_root, tmp_path / "world"))
    folder = make(root=root)
    dataset = dataset_of(root, indexes[0], cache_dir=str(folder))
    info = dataset.get_data_info(1)
    name = info["images"]["CAM_BACK"]["img_path"]
    copy, original = folder / "88x50" / name, root / name
    good = copy.read_bytes()

    def check(what: str) -> None:
        with pytest.raises(DataError, match=what) as caught:
            dataset[1]
        assert caught.value.path == str(copy)
        assert caught.value.sample_token == info["token"]
        assert f"`perception data prepare {root} --out {tmp_path} --cache 88x50` makes it again" in str(
            caught.value
        )

    copy.write_bytes(good[:-30])
    check("damaged")
    copy.write_bytes(good[:300] + b"\x00" + good[301:])
    check("damaged")
    copy.unlink()
    check("missing")
    copy.write_bytes(good)
    assert dataset[1]["inputs"]["img"].shape[0] == 3
    original.write_bytes(original.read_bytes() + b"\n")
    check("stale")


@pytest.mark.parametrize("options", [{"size": (80, 50)}, {"interpolation": "area"}])
def test_a_resize_that_the_cache_was_not_made_for_is_refused(make, synthetic_root, indexes, options):
    with pytest.raises(ValueError, match="the cached images were made with"):
        inputs_of(synthetic_root, indexes[0], cache_dir=str(make()), **options)


def test_an_index_of_another_size_is_refused(make, synthetic_root, indexes, tmp_path):
    folder = make()
    content = json.loads(indexes[0].read_text())
    for sample in content["data_list"]:
        sample["images"]["CAM_BACK"]["width"] = 1408
    write_json_atomic(tmp_path / "index.json", content)
    with pytest.raises(DataError, match=r"made from one of 704×396, but the index says 1408×396"):
        inputs_of(synthetic_root, tmp_path / "index.json", cache_dir=str(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 0}, "version 0, this program has version 1"),
        ({"size": [80, 50]}, "holds 80x50, not what its folder is called"),
        ({"format": "gif"}, "not the manifest of an image cache"),
        ({"size": 3}, "not the manifest of an image cache"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(make, synthetic_root, indexes, change, message):
    folder = make()
    path = folder / "88x50" / "cache.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=message):
        inputs_of(synthetic_root, indexes[0], cache_dir=str(folder))


def test_images_outside_the_root_have_no_copy(make, synthetic_root, tmp_path):
    cache = ImageCache(cache_dir=make(), data_root=synthetic_root, size=SIZE)
    with pytest.raises(DataError, match="not below the data root"):
        cache.read(tmp_path / "a.jpg")


def test_a_cache_needs_a_size():
    with pytest.raises(ValueError, match="needs target_size"):
        LoadMultiViewImages(cache_dir="auto")


def test_the_command_for_each_place():
    assert cache_command("auto", "a b", SIZE) == "perception data prepare 'a b' --cache 88x50"
    assert cache_command("x/image_cache", "r", SIZE) == "perception data prepare r --out x --cache 88x50"
    assert cache_command("fast", "r", SIZE) == "perception data prepare r --cache-dir fast --cache 88x50"


def test_the_record_survives_any_image_content():
    for content in (b"", b"\n{", b'\n{"crc32": 1}\n', bytes(range(256))):
        settings = CacheSettings(size=(1, 1))
        record = SourceRecord(num_bytes=1, mtime_ns=2, size=(3, 4), reduction=8)
        assert settings.name == "1x1"
        assert split_copy(join_copy(content, record)) == (content, record)

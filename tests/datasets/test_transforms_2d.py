"""Pixels, boxes and masks of one image move together: drawn rectangles tell, exactly."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from perception.datasets.transforms import (
    CropImage,
    LoadImage2D,
    LoadSegMask,
    PackImageInputs,
    PhotometricDistortion,
    RandomFlipImage,
    ResizeImage,
)
from perception.datasets.transforms._labels_2d import resize_mask
from perception.datasets.transforms.augment_2d import flip_sample
from perception.utils import DataError

SHAPE = (72, 128)
RECTANGLES = np.array([[8, 16, 40, 48], [64, 0, 128, 24], [100, 50, 101, 52]], dtype=np.float32)


def _drawn(shape: tuple[int, int] = SHAPE, boxes: np.ndarray = RECTANGLES) -> np.ndarray:
    """(H, W) uint8: k + 1 inside rectangle k, 0 elsewhere."""
    mask = np.zeros(shape, np.uint8)
    for number, (x1, y1, x2, y2) in enumerate(boxes.astype(int), start=1):
        mask[y1:y2, x1:x2] = number
    return mask


def _sample(seed: int = 0, **changes: Any) -> dict[str, Any]:
    mask = _drawn()
    return {
        "img_path": "a.jpg",
        "frame_name": "a",
        "img_id": 3,
        "ori_shape": SHAPE,
        "rng": np.random.default_rng(seed),
        "img": np.repeat(mask[..., None] * 60, 3, axis=-1),
        "scale_factor": (1.0, 1.0),
        "flip": False,
        "gt_bboxes": RECTANGLES.copy(),
        "gt_labels": np.array([2, 9, 0]),
        "gt_ignored": np.zeros(3, dtype=bool),
        "gt_sem_seg": mask,
        "pseudo_bboxes": RECTANGLES[:1].copy(),
        "pseudo_labels": np.array([2]),
        "pseudo_scores": np.array([0.7]),
        "pseudo_sem_seg": mask,
        **changes,
    }


def _pixels_whose_centre_lies_in(box: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    rows, columns = np.arange(shape[0])[:, None] + 0.5, np.arange(shape[1]) + 0.5
    return (columns >= box[0]) & (columns < box[2]) & (rows >= box[1]) & (rows < box[3])


def _assert_boxes_fit_masks(results: dict[str, Any]) -> None:
    mask = results["gt_sem_seg"]
    for number, box in enumerate(results["gt_bboxes"].astype(np.float64), start=1):
        assert ((mask == number) == _pixels_whose_centre_lies_in(box, mask.shape)).all()
    assert (results["pseudo_sem_seg"] == mask).all()
    assert (results["pseudo_bboxes"] == results["gt_bboxes"][:1]).all()


# ------------------------------------------------------------------------------------------------ resizing


@pytest.mark.parametrize("size", [(64, 36), (256, 144), (192, 36), (96, 54), (48, 100), (128, 72)])
def test_a_rectangles_mask_is_its_box_after_resizing(size: tuple[int, int]) -> None:
    results = ResizeImage(size=size)(_sample())
    assert results["img"].shape == (size[1], size[0], 3)
    assert results["gt_sem_seg"].shape == (size[1], size[0])
    assert results["scale_factor"] == (size[0] / 128, size[1] / 72)
    _assert_boxes_fit_masks(results)


def test_image_and_mask_do_not_slip_against_each_other() -> None:
    """Half the size, area filter: a 2-aligned rectangle is pure in both, pixel by pixel."""
    boxes = RECTANGLES[:2]
    mask = _drawn(boxes=boxes)
    results = ResizeImage(size=(64, 36), interpolation="area")(
        _sample(gt_sem_seg=mask, img=np.repeat(mask[..., None] * 60, 3, axis=-1))
    )
    assert (results["img"][..., 0] == results["gt_sem_seg"] * 60).all()


def test_masks_keep_their_ids_and_centres() -> None:
    rng = np.random.default_rng(0)
    mask = rng.choice([0, 7, 18, 255], size=(31, 57)).astype(np.uint8)
    for size in ((10, 7), (90, 64), (57, 31), (1, 1)):
        resized = resize_mask(mask, size)
        assert resized.dtype == np.uint8
        exact = [
            [mask[int((j + 0.5) * 31 / size[1]), int((i + 0.5) * 57 / size[0])] for i in range(size[0])]
            for j in range(size[1])
        ]
        assert resized.tolist() == exact


def test_short_edge_is_drawn_and_the_long_edge_bounded() -> None:
    resize = ResizeImage(short_edges=range(256, 609, 32), max_long_edge=900)
    shapes = set()
    for seed in range(60):
        height, width = resize(_sample(seed, ori_shape=(720, 1280)))["img"].shape[:2]
        shapes.add(height)
        assert width <= 900
        assert width / height == pytest.approx(1280 / 720, abs=0.01)
    assert shapes == {*range(256, 481, 32), 506}  # above, 900 wide is the limit: 900 · 9/16 = 506.25


def test_the_draw_depends_on_the_generator_only() -> None:
    resize = ResizeImage(short_edges=(20, 40, 60))
    first = [resize(_sample(seed))["img"].shape for seed in range(20)]
    assert first == [resize(_sample(seed))["img"].shape for seed in range(20)]
    assert len(set(first)) == 3


def test_keep_ratio_fits_into_the_size() -> None:
    assert ResizeImage(size=(64, 64), keep_ratio=True)(_sample())["img"].shape == (36, 64, 3)
    assert ResizeImage(size=(640, 36), keep_ratio=True)(_sample())["img"].shape == (36, 64, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either size"),
        ({"size": (8, 8), "short_edges": (4,)}, "give either size"),
        ({"size": (8, 0)}, "positive numbers"),
        ({"size": (8, 8), "max_long_edge": 9}, "max_long_edge goes with short_edges"),
        ({"short_edges": (4,), "keep_ratio": True}, "keep_ratio goes with size"),
        ({"short_edges": ()}, "must be positive"),
        ({"short_edges": (4, 0)}, "must be positive"),
        ({"size": (8, 8), "interpolation": "cubic"}, "must be one of"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResizeImage(**options)


# ------------------------------------------------------------------------------------------- flipping, cutting


def test_flipping_twice_is_the_identity() -> None:
    sample = _sample()
    twice = flip_sample(flip_sample(sample))
    for key, value in sample.items():
        assert np.array_equal(value, twice[key]), key


def test_flipped_boxes_fit_flipped_masks() -> None:
    flipped = flip_sample(_sample())
    assert flipped["flip"] is True
    assert flipped["gt_bboxes"][0].tolist() == [88, 16, 120, 48]
    assert (flipped["img"][..., 0] == flipped["gt_sem_seg"] * 60).all()
    _assert_boxes_fit_masks(flipped)


def test_flips_come_with_their_probability() -> None:
    num = sum(RandomFlipImage(prob=0.25)(_sample(seed))["flip"] for seed in range(400))
    assert 70 < num < 130
    assert not RandomFlipImage(prob=0.0)(_sample())["flip"]
    with pytest.raises(ValueError, match=r"0…1"):
        RandomFlipImage(prob=1.5)


def test_a_window_moves_boxes_and_masks_alike() -> None:
    places = set()
    for seed in range(20):
        cut = CropImage(size=(50, 30))(_sample(seed))
        assert cut["img"].shape == (30, 50, 3)
        assert (cut["img"][..., 0] == cut["gt_sem_seg"] * 60).all()
        _assert_boxes_fit_masks(cut)
        places.add(tuple(cut["gt_bboxes"][0]))
    assert len(places) > 15
    assert CropImage(size=(500, 30))(_sample())["img"].shape == (30, 128, 3)


def test_a_window_reaches_every_place() -> None:
    lefts = {int(8 - CropImage(size=(126, 72))(_sample(seed))["gt_bboxes"][0, 0]) for seed in range(60)}
    assert lefts == {0, 1, 2}


def test_cutting_before_resizing_is_refused() -> None:
    with pytest.raises(ValueError, match="put ResizeImage before CropImage"):
        CropImage(size=(8, 8))(_sample(gt_sem_seg=np.zeros((144, 256), np.uint8)))


def test_distortion_takes_a_single_image() -> None:
    sample = _sample()
    distorted = PhotometricDistortion(prob=1.0)(sample)
    assert distorted["img"].shape == sample["img"].shape
    assert (distorted["img"] != sample["img"]).any()
    assert (distorted["gt_sem_seg"] == sample["gt_sem_seg"]).all()


def test_steps_leave_their_argument_as_it_was() -> None:
    sample = _sample()
    kept = {key: value.copy() if isinstance(value, np.ndarray) else value for key, value in sample.items()}
    for step in (
        ResizeImage(size=(64, 36)),
        RandomFlipImage(prob=1.0),
        CropImage(size=(8, 8)),
        PhotometricDistortion(prob=1.0),
        PackImageInputs(),
    ):
        step(sample)
        assert all(np.array_equal(sample[key], value) for key, value in kept.items() if key != "rng")


# --------------------------------------------------------------------------------------------------- loading


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    """A sample whose image and mask lie on disk, and nothing is loaded."""
    sample = {key: value for key, value in _sample().items() if key not in ("img", "flip", "scale_factor")}
    mask = sample.pop("gt_sem_seg")
    sample.pop("pseudo_sem_seg")
    image = np.repeat(mask[..., None] * 60, 3, axis=-1)
    cv2.imwrite(str(tmp_path / "a.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 100])
    cv2.imwrite(str(tmp_path / "a.png"), mask)
    return {**sample, "img_path": str(tmp_path / "a.jpg"), "seg_path": str(tmp_path / "a.png")}


def test_loading_in_full(files: dict[str, Any]) -> None:
    loaded = LoadSegMask()(LoadImage2D()(files))
    assert np.abs(loaded["img"][..., 0].astype(int) - _drawn() * 60).mean() < 3
    assert (loaded["gt_sem_seg"] == _drawn()).all()
    assert "pseudo_sem_seg" not in loaded
    assert loaded["scale_factor"] == (1, 1)
    assert (loaded["gt_bboxes"] == RECTANGLES).all()


def test_reduced_decoding_ends_where_full_decoding_does(files: dict[str, Any]) -> None:
    steps = (LoadSegMask(), ResizeImage(size=(48, 27), interpolation="area"))
    full, reduced = LoadImage2D()(files), LoadImage2D(target_size=(48, 27))(files)
    assert reduced["img"].shape == (36, 64, 3)
    assert reduced["scale_factor"] == (0.5, 0.5)
    for step in steps:
        full, reduced = step(full), step(reduced)
    assert reduced["scale_factor"] == pytest.approx(full["scale_factor"])
    assert np.allclose(reduced["gt_bboxes"], full["gt_bboxes"], atol=1e-5)
    assert (reduced["gt_sem_seg"] == full["gt_sem_seg"]).all()
    assert np.abs(reduced["img"].astype(int) - full["img"]).mean() < 3


def test_a_frame_without_masks_or_boxes_passes(files: dict[str, Any]) -> None:
    bare = {key: files[key] for key in ("img_path", "frame_name", "img_id", "ori_shape", "rng")}
    for step in (
        LoadImage2D(),
        LoadSegMask(),
        ResizeImage(size=(64, 36)),
        RandomFlipImage(prob=1.0),
        CropImage(size=(32, 32)),
    ):
        bare = step(bare)
    sample = PackImageInputs()(bare)["data_samples"]
    assert set(sample.all_keys()) == set(sample.metainfo_keys())


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((36, 64), np.uint8), r"the mask is 64×36, its image 128×72"),
        (np.full(SHAPE, 19, np.uint8), r"the ids 19; allowed are 0 to 18 and 255"),
        (np.zeros((*SHAPE, 3), np.uint8), "one channel of 8 bits.*not the colormaps"),
        (np.zeros(SHAPE, np.uint16), "one channel of 8 bits"),
    ],
)
def test_a_wrong_mask_is_named(files: dict[str, Any], mask: np.ndarray, message: str) -> None:
    cv2.imwrite(files["seg_path"], mask)
    with pytest.raises(DataError, match=message) as caught:
        LoadSegMask()(files)
    assert caught.value.sample_token == "a"
    assert caught.value.path == files["seg_path"]


def test_missing_and_cut_files_are_named(files: dict[str, Any]) -> None:
    whole = Path(files["seg_path"]).read_bytes()
    Path(files["seg_path"]).write_bytes(whole[:20])
    with pytest.raises(DataError, match="cannot be decoded"):
        LoadSegMask()(files)
    Path(files["seg_path"]).unlink()
    with pytest.raises(DataError, match="is missing"):
        LoadSegMask()(files)
    with pytest.raises(DataError, match=r"decodes to 128×72 at 1/1, but the index says 100×72"):
        LoadImage2D()({**files, "ori_shape": (72, 100)})


# --------------------------------------------------------------------------------------------------- packing


def test_packed_item() -> None:
    packed = PackImageInputs()(_sample(gt_ignored=np.array([False, True, False])))
    image, sample = packed["inputs"]["img"], packed["data_samples"]
    assert image.shape == (3, *SHAPE)
    assert image.dtype == torch.uint8
    assert sample.gt_instances.bboxes.tolist() == RECTANGLES[[0, 2]].tolist()
    assert sample.gt_instances.labels.tolist() == [2, 0]
    assert sample.gt_instances.bboxes.dtype == torch.float32
    assert sample.gt_instances.labels.dtype == torch.int64
    assert sample.ignored_instances.bboxes.tolist() == RECTANGLES[[1]].tolist()
    assert sample.gt_sem_seg.sem_seg.shape == (1, *SHAPE)
    assert sample.gt_sem_seg.sem_seg.dtype == torch.int64
    assert (sample.pseudo_sem_seg.sem_seg == sample.gt_sem_seg.sem_seg).all()
    assert sample.pseudo_instances.scores.tolist() == pytest.approx([0.7])
    assert sample.metainfo == {
        "img_id": 3,
        "frame_name": "a",
        "sample_token": "a",
        "img_path": "a.jpg",
        "ori_shape": SHAPE,
        "img_shape": SHAPE,
        "scale_factor": (1.0, 1.0),
        "flip": False,
    }


def test_labels_that_are_there_but_empty_stay_there() -> None:
    empty = {
        "gt_bboxes": np.zeros((0, 4), np.float32),
        "gt_labels": np.zeros(0, np.int64),
        "gt_ignored": np.zeros(0, bool),
    }
    sample = PackImageInputs()(flip_sample(_sample(**empty)))["data_samples"]
    assert sample.gt_instances.bboxes.shape == (0, 4)
    assert sample.ignored_instances.bboxes.shape == (0, 4)


def test_clipped_boxes_that_are_too_small() -> None:
    boxes = np.array([[-30, 5, 20, 30], [126, 10, 160, 40], [-9, 0, 0.5, 9], [130, 0, 140, 9]], np.float32)
    sample = _sample(gt_bboxes=boxes, gt_labels=np.arange(4), gt_ignored=np.zeros(4, bool))
    dropped = PackImageInputs(min_box_size=4)(sample)["data_samples"]
    assert dropped.gt_instances.bboxes.tolist() == [[0, 5, 20, 30]]
    assert dropped.gt_instances.labels.tolist() == [0]
    assert len(dropped.ignored_instances.bboxes) == 0
    ignored = PackImageInputs(min_box_size=4, too_small="ignore")(sample)["data_samples"]
    assert ignored.gt_instances.bboxes.tolist() == [[0, 5, 20, 30]]
    assert ignored.ignored_instances.bboxes.tolist() == [[126, 10, 128, 40], [0, 0, 0.5, 9]]
    with pytest.raises(ValueError, match="too_small must be"):
        PackImageInputs(too_small="keep")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="min_box_size must be positive"):
        PackImageInputs(min_box_size=0)


def test_a_mask_that_was_not_resized_is_refused() -> None:
    with pytest.raises(ValueError, match="add ResizeImage"):
        PackImageInputs()(_sample(gt_sem_seg=np.zeros((36, 64), np.uint8)))

"""Resizing, cutting and normalising inside the graph, against cv2 and the data set's own pipeline."""

import cv2
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from perception.datasets import ResizeImage, ResizeMultiView, raw_pipeline
from perception.export.prepare_images import PrepareImages, resize_area, resize_bilinear
from perception.models.data_preprocessor import NormalizingPreprocessor


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def resize(function, image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return function(torch.from_numpy(image)[None], size)[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    ("source", "size"),
    [
        ((400, 225), (352, 198)),
        ((1600, 900), (352, 198)),
        ((800, 450), (512, 288)),
        ((64, 36), (128, 72)),
        ((97, 61), (41, 33)),
    ],
)
def test_bilinear_is_cv2_s_to_the_level(source, size):
    image = picture(*source)
    expected = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR).astype(np.float32)
    diff = np.abs(resize(resize_bilinear, image, size) - expected)
    assert diff.max() <= 1.0
    assert (diff > 0).mean() < 1e-4


def test_images_of_the_right_size_stay_as_they_are():
    image = picture(88, 50)
    for function in (resize_bilinear, resize_area):
        assert np.array_equal(resize(function, image, (88, 50)), image)


@pytest.mark.parametrize(
    ("source", "size"), [((320, 180), (256, 144)), ((1280, 720), (256, 144)), ((96, 60), (31, 29))]
)
def test_area_is_cv2_s(source, size):
    image = picture(*source)
    expected = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    diff = np.abs(resize(resize_area, image, size) - expected)
    assert diff.max() <= 1.0
    assert (diff > 0).mean() < 1e-4


@pytest.mark.parametrize("bgr_to_rgb", [True, False])
def test_the_whole_is_the_pipeline_s_and_the_preprocessor_s(bgr_to_rgb):
    preprocessor = NormalizingPreprocessor(bgr_to_rgb=bgr_to_rgb, mean=(1.0, 2.0, 3.0), pad_size_divisor=16)
    prepare = PrepareImages(preprocessor, size=(40, 30), interpolation="bilinear", crop_top=7)
    bgr = picture(64, 50)
    resized = cv2.resize(bgr, (40, 30), interpolation=cv2.INTER_LINEAR)[7:]
    expected = preprocessor.normalize(torch.from_numpy(resized.transpose(2, 0, 1).copy()))
    found = prepare(torch.from_numpy(bgr[..., ::-1].copy())[None])[0]
    assert found.shape == expected.shape == (3, 32, 48)
    assert_close(found, expected, atol=0.02, rtol=0)
    assert prepare.shape == (23, 40)
    assert_close(prepare.scale(torch.zeros(1, 50, 64, 3)), torch.tensor([40 / 64, 30 / 50]))


def test_a_pipeline_is_cut_where_the_graph_begins():
    load, pack = {"type": "LoadMultiViewImages", "target_size": (352, 198)}, {"type": "PackBEVInputs"}
    steps = [{"type": "ResizeMultiView", "size": (352, 198)}, {"type": "CropTopMultiView", "rows": 54}]
    raw, found = raw_pipeline({"data_root": "x", "pipeline": [load, *steps, pack]})
    assert raw == {"data_root": "x", "pipeline": [load, pack]}
    assert isinstance(found.resize, ResizeMultiView)
    assert (found.crop_top, found.interpolation, found.resized((1600, 900))) == (54, "bilinear", (352, 198))
    resize = {"type": "ResizeImage", "short_edges": (512,), "max_long_edge": 736}
    raw, found = raw_pipeline({"pipeline": [{"type": "LoadSegMask"}, resize]})
    assert isinstance(found.resize, ResizeImage)
    assert (raw["pipeline"], found.resized((1280, 720))) == ([], (736, 414))


def test_an_unknown_step_is_named():
    with pytest.raises(ValueError, match=r"pipeline\.1 is PhotometricDistortion, which an exported graph"):
        raw_pipeline({"pipeline": [{"type": "LoadImage2D"}, {"type": "PhotometricDistortion"}]})

"""Decoding at reduced size, with and without a known size."""

import cv2
import numpy as np
import pytest

from perception.datasets._image_files import decode_for, reduced_size, resize_image
from perception.utils import DataError


def encoded(width: int, height: int, extension: str = ".jpg") -> bytes:
    grey = np.random.default_rng(0).integers(0, 255, (height, width, 1), dtype=np.uint8)
    image = np.repeat(grey, 3, axis=2)
    return cv2.imencode(extension, cv2.GaussianBlur(image, (7, 7), 0))[1].tobytes()


@pytest.mark.parametrize("extension", [".jpg", ".png"])
@pytest.mark.parametrize(
    ("size", "target", "reduction"),
    [
        ((160, 90), (51, 29), 2),
        ((160, 90), (80, 45), 2),
        ((160, 90), (81, 45), 1),
        ((161, 91), (40, 22), 4),
        ((160, 90), (16, 9), 8),
        ((160, 90), (320, 180), 1),
        ((160, 90), (20, 45), 2),
        ((160, 90), None, 1),
    ],
)
def test_the_smallest_decoding_that_is_not_below_the_target(extension, size, target, reduction):
    content = encoded(*size, extension)
    reduction = reduction if extension == ".jpg" else 1  # a PNG decodes no faster at less than its size
    known = decode_for(content, target, path="x", expected_size=size)
    assert (known.reduction, known.source_size) == (reduction, size)
    assert known.pixels.shape[1::-1] == reduced_size(size, reduction)
    np.testing.assert_allclose(known.scale(np.eye(4)), np.diag([1 / reduction, 1 / reduction, 1, 1]))
    unknown = decode_for(content, target, path="x")  # an index of another origin says no size
    assert (unknown.reduction, unknown.source_size) == (reduction, size)
    np.testing.assert_array_equal(unknown.pixels, known.pixels)


def test_a_reduced_decoding_is_the_mean_of_the_pixels_it_stands_for():
    content = encoded(160, 96)
    full = decode_for(content, None, path="x").pixels.astype(float)
    reduced = decode_for(content, (80, 48), path="x").pixels
    mean = full.reshape(48, 2, 80, 2, 3).mean(axis=(1, 3))
    assert np.abs(reduced - mean).mean() < 0.5
    assert np.abs(reduced[:, 1:] - mean[:, :-1]).mean() > 5  # by one pixel off


@pytest.mark.parametrize("expected", [None, (160, 90)])
@pytest.mark.parametrize("content", [b"", b"no image", encoded(160, 90)[:-40]])
def test_what_cannot_be_decoded_is_named(content, expected):
    with pytest.raises(DataError, match="cannot be decoded") as caught:
        decode_for(content, (40, 20), path="a/b.jpg", expected_size=expected, sample_token="t")
    assert (caught.value.path, caught.value.sample_token) == ("a/b.jpg", "t")


def test_another_size_than_the_calibration_s_is_refused():
    with pytest.raises(DataError, match=r"decodes to 80×45 at 1/2, but the index says 320×180"):
        decode_for(encoded(160, 90), (160, 90), path="x", expected_size=(320, 180))


def test_resizing_to_the_same_size_is_nothing():
    image = decode_for(encoded(32, 18), None, path="x").pixels
    assert resize_image(image, (32, 18), "area") is image

"""Masks as the official toolkit reads them, and those that are refused."""

import pickle

import numpy as np
import pytest
from PIL import Image

from perception.datasets import read_mask
from perception.utils import DataError
from tests.datasets.bdd100k_world import SIZE, write_mask


def test_real_masks_are_read_as_by_the_toolkit(shared_root):
    paths = sorted((shared_root / "data" / "bdd100k_cases" / "sem_seg_masks").glob("*/*.png"))
    assert len(paths) == 4
    for path in paths:
        with Image.open(path) as image:
            expected = np.asarray(image, dtype=np.uint8)
        mask = read_mask(path)
        assert mask.dtype == np.uint8
        assert np.array_equal(mask, expected)


def test_every_allowed_id_is_read(tmp_path):
    path = tmp_path / "mask.png"
    write_mask(path, (*range(19), 255))
    mask = read_mask(path, size=SIZE)
    assert mask.shape == SIZE[::-1]
    assert np.unique(mask).tolist() == [*range(19), 255]
    mask[0, 0] = 3  # it may be written to


def test_a_palette_means_nothing(tmp_path):
    path = tmp_path / "mask.png"
    ids = np.array([[0, 7], [255, 18]], np.uint8)
    image = Image.fromarray(ids)
    image.putpalette([200, 100, 50] * 256)
    image.save(path)
    with Image.open(path) as written:
        assert written.mode == "P"
    assert np.array_equal(read_mask(path), ids)


@pytest.mark.parametrize(
    ("wrong", "shown"), [((19,), "ids 19;"), ((254,), "ids 254;"), ((33, 34, 100), "33, 34, 100;")]
)
def test_other_ids_are_named(tmp_path, wrong, shown):
    path = tmp_path / "mask.png"
    write_mask(path, (0, *wrong, 255, 18))
    with pytest.raises(DataError, match=f"{shown} allowed are 0 to 18 and 255") as caught:
        read_mask(path, frame="a.jpg")
    assert (caught.value.sample_token, caught.value.path) == ("a.jpg", str(path))
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301 - as loader workers do


def test_size_and_form_are_checked(tmp_path):
    path = tmp_path / "mask.png"
    write_mask(path)
    with pytest.raises(DataError, match="the mask is 64×36, its image 65×36"):
        read_mask(path, size=(65, 36))
    for mode in ("RGB", "I;16", "LA"):
        Image.new(mode, SIZE).save(path)
        with pytest.raises(DataError, match="take labels/sem_seg/masks, not the colormaps"):
            read_mask(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="cannot be decoded"):
        read_mask(path)
    write_mask(path)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match="cannot be decoded"):
        read_mask(path)
    with pytest.raises(DataError, match="the mask is missing"):
        read_mask(tmp_path / "other.png")

import pytest
import torch
from torch.testing import assert_close

from perception.models import BEVDataPreprocessor
from tests.models.small import collate, make_item

MEAN, STD = (10.0, 20.0, 30.0), (1.0, 2.0, 4.0)


def test_normalises_then_pads_with_zero():
    preprocessor = BEVDataPreprocessor(mean=MEAN, std=STD, bgr_to_rgb=True, pad_size_divisor=32)
    batch = collate([make_item(1), make_item(2)])
    inputs = preprocessor(batch, True)["inputs"]
    assert inputs["img"].shape == (2, 2, 6, 3, 64, 96)
    raw = batch["inputs"]["img"][1][0, 3].float()  # BGR
    expected = (raw[[2, 1, 0]] - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    assert_close(inputs["img"][1, 0, 3, :, :60], expected)
    assert inputs["img"][..., 60:, :].abs().max() == 0
    assert_close(inputs["lidar2img"][0], batch["inputs"]["lidar2img"][0])
    assert inputs["has_prev"].dtype == torch.bool


def test_keeps_the_samples():
    batch = collate([make_item(1)])
    assert BEVDataPreprocessor()(batch)["data_samples"][0].metainfo["sample_token"] == "token1"


def test_missing_key_is_named():
    batch = collate([make_item(1)])
    del batch["inputs"]["ego_motion"]
    with pytest.raises(ValueError, match="ego_motion"):
        BEVDataPreprocessor()(batch)


def test_three_numbers_needed():
    with pytest.raises(ValueError, match="3 numbers"):
        BEVDataPreprocessor(mean=(1.0,))

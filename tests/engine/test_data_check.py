from types import SimpleNamespace

import numpy as np
import pytest
import torch

from perception.config import ConfigError
from perception.engine.data_check import check_cameras
from perception.models import BEVEncoder
from tests.models.small import IMAGE, ring_of_cameras


class Rigs:
    """One sample for each of some rigs."""

    def __init__(self, *rigs):
        self.rigs = rigs

    def read_cameras(self):
        for number, rig in enumerate(self.rigs):
            yield f"token{number}", np.asarray(rig), (IMAGE[1], IMAGE[0])


def make_model(max_cameras_per_cell):
    encoder = BEVEncoder(
        pc_range=(-40.0, -40.0, -5.0, 40.0, 40.0, 3.0), bev_h=4, bev_w=4, embed_dims=8, num_heads=2, num_layers=1,
        num_cams=3, max_cameras_per_cell=max_cameras_per_cell,
    )  # fmt: skip
    return SimpleNamespace(bev_encoder=encoder)


RING = ring_of_cameras()[:3]
SAME = torch.stack([RING[0]] * 3)


def test_overlapping_cameras_are_refused_by_the_sample():
    with pytest.raises(
        ConfigError, match=r"is 2, but in sample token1 of train_dataloader 3 cameras see .* Set it to 3"
    ):
        check_cameras(make_model(2), {"train_dataloader": Rigs(RING, SAME)})


@pytest.mark.parametrize("allowed", [None, 3])
def test_every_camera_is_always_enough(allowed):
    check_cameras(make_model(allowed), {"train_dataloader": Rigs(SAME)})


def test_enough_slots_pass():
    check_cameras(make_model(2), {"train_dataloader": Rigs(RING), "val_dataloader": object()})
    check_cameras(SimpleNamespace(), {"train_dataloader": Rigs(SAME)})


def test_a_data_set_without_image_sizes_is_named_as_not_checked(caplog):
    with caplog.at_level("WARNING", logger="perception"):
        check_cameras(make_model(2), {"train_dataloader": Rigs(RING)})
        assert not caplog.records
        check_cameras(make_model(2), {"val_dataloader": Rigs()})
    assert "val_dataloader: its index names no image sizes" in caplog.text

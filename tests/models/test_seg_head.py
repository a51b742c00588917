"""The segmentation head: frames, sizes and losses."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from perception.models import SegHead
from perception.models.map_slicer import MapSlicer
from perception.models.seg_losses import cross_entropy, dice_loss
from perception.structures import BEVGrid, MapGrid
from tests.models.parity_fixtures import read_arrays
from tests.models.small import GRID, MAP_SHAPE

BEV = BEVGrid((-51.2, -51.2, -5.0, 51.2, 51.2, 3.0), 200, 100)
MAP = MapGrid()


def make_head(**changes):
    torch.manual_seed(0)
    return SegHead(**{"width": 4, "map_resolution": 1.5, **GRID, **changes})


@pytest.mark.parametrize("point", [(0.0, 0.0), (12.0, 25.0), (-9.3, 4.1), (5.0, -28.0)])
def test_an_impulse_at_known_metres_lands_on_the_right_pixel(point):
    centres = torch.from_numpy(BEV.centres())
    distance = (centres - torch.tensor(point)).square().sum(-1)
    blob = (-distance / (2 * 1.5**2)).exp().float()  # a bump of σ = 1.5 m at the point
    sliced = MapSlicer(bev_grid=BEV, map_grid=MAP)(blob[None, None])[0, 0]
    mass = sliced / sliced.sum()
    rows, columns = torch.meshgrid(torch.arange(200), torch.arange(400), indexing="ij")
    column, row = MAP.lidar2pixels(np.array(point))
    if 10 < row < 190 and 10 < column < 390 and max(abs(point[0]) - 10, abs(point[1]) - 25) < 0:
        assert float((mass * rows).sum()) == pytest.approx(row, abs=0.5)
        assert float((mass * columns).sum()) == pytest.approx(column, abs=0.5)
    peak = divmod(int(sliced.argmax()), 400)
    assert abs(peak[0] - row) <= 0.6 / 0.15
    assert abs(peak[1] - column) <= 0.6 / 0.15


def test_a_linear_field_is_sampled_exactly():
    centres = torch.from_numpy(BEV.centres()).float().permute(2, 0, 1)[None]
    sliced = MapSlicer(bev_grid=BEV, map_grid=MAP)(centres)[0].permute(1, 2, 0)
    assert_close(sliced, torch.from_numpy(MAP.centres()).float(), atol=1e-3, rtol=0)


def test_upstreams_orientation():
    arrays = read_arrays("micro_seg_slicer_real")
    bev_grid = BEVGrid((-51.2, -51.2, -5.0, 51.2, 51.2, 3.0), 150, 150)
    for bev_row, bev_col, map_row, map_col in arrays["orientation_probe"].tolist():
        impulse = torch.zeros(1, 1, 150, 150)
        impulse[0, 0, bev_row, bev_col] = 1
        sliced = MapSlicer(bev_grid=bev_grid, map_grid=MAP)(impulse)[0, 0]
        row, column = divmod(int(sliced.argmax()), 400)
        # Upstream's cells are 0.68 m instead of 0.6827 m: less than a map pixel of 0.15 m.
        assert abs(row - map_row) <= 1
        assert abs(column - map_col) <= 1


def test_border_continues_to_the_edge():
    grid = BEVGrid((-15.0, -30.0, -5.0, 15.0, 30.0, 3.0), 4, 4)
    sliced = MapSlicer(bev_grid=grid, map_grid=MAP)(torch.ones(1, 2, 4, 4))
    assert_close(sliced, torch.ones(1, 2, 200, 400))


def test_weighted_mean_over_pixels_by_hand():
    logits = torch.zeros(1, 4, 1, 3)
    logits[0, 2, 0, 1] = 1.0
    target = torch.tensor([[[0, 2, 255]]])
    first = 0.3 * math.log(4)
    second = 2.0 * -math.log(math.e / (math.e + 3))
    assert_close(
        cross_entropy(logits, target, torch.tensor([0.3, 2, 2, 2])), torch.tensor((first + second) / 2)
    )


def test_dice_by_hand():
    logits = torch.full((1, 3, 1, 4), -50.0)
    for pixel, label in enumerate([1, 1, 0, 2]):
        logits[0, label, 0, pixel] = 50.0
    target = torch.tensor([[[1, 0, 0, 2]]])
    first, second = (2 * 1 + 1) / (2 + 1 + 1), 1.0
    assert_close(dice_loss(logits, target), torch.tensor(1 - (first + second) / 2))
    assert_close(dice_loss(logits, torch.tensor([[[1, 1, 0, 2]]])), torch.tensor(0.0))


def test_dice_gradients():
    logits = torch.randn(2, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 4, (2, 2, 3))
    target[0, 0, 0] = 255
    assert torch.autograd.gradcheck(lambda x: dice_loss(x, target), (logits,))


def test_a_sample_without_a_map_does_not_count():
    head = make_head().eval()
    logits = torch.randn(2, 4, *MAP_SHAPE)
    target = torch.randint(0, 4, MAP_SHAPE)
    both, alone = head.loss(logits, [None, target]), head.loss(logits[1:], [target])
    assert_close(both["seg.loss_ce"], alone["seg.loss_ce"])
    assert head.loss(logits, [None, None]) == {}
    assert head.loss(logits, [None, torch.full(MAP_SHAPE, 255)]) == {}


@pytest.mark.parametrize("changes", [{}, {"output_stride": 2}, {"reduce_dims": 6}, {"map_resolution": 1.0}])
def test_logits_have_the_maps_shape(changes):
    head = make_head(**changes)
    logits = head(torch.randn(2, 120, 16))
    assert logits.shape == (2, 4, *head.map_grid.shape)
    assert head.predict(logits).shape == (2, *head.map_grid.shape)


def test_size_of_the_official_decoder():
    head = SegHead(pc_range=(-51.2, -51.2, -5.0, 51.2, 51.2, 3.0), bev_h=150, bev_w=150)
    assert sum(p.numel() for p in head.parameters()) == 5_200_004


def test_class_weights_must_fit():
    with pytest.raises(ValueError, match="class_weights"):
        make_head(class_weights=(1.0, 2.0))

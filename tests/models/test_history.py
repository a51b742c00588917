"""Aligning history: things that stand still in the world stay on their cell's content."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from perception.models import BEVEncoder
from perception.models.history import clear_motion, lidar_origin_pixel, rotate_bev
from perception.models.temporal_self_attention import TemporalSelfAttention
from perception.structures import BEVGrid, bev_shift, ego_motion

SQUARE = BEVGrid((-51.2, -51.2, -5.0, 51.2, 51.2, 3.0), 64, 64)
ASYMMETRIC = BEVGrid((-40.0, -30.0, -5.0, 60.0, 34.0, 3.0), 48, 64)


def pose(x, y, yaw):
    matrix = np.eye(4)
    matrix[:2, :2] = [[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]]
    matrix[:2, 3] = x, y
    return matrix


LIDAR2EGO = pose(0.94, 0.0, -math.pi / 2)  # the LiDAR's y looks along the ego's x


def cell_of(grid, point):
    dx, dy = grid.cell_size
    return int((point[0] - grid.pc_range[0]) // dx), int((point[1] - grid.pc_range[1]) // dy)


@pytest.mark.parametrize("grid", [SQUARE, ASYMMETRIC], ids=["square", "asymmetric"])
@pytest.mark.parametrize("yaw_change", [0.0, 0.4, -2.5])
@pytest.mark.parametrize("start", [(100.0, -50.0, 0.3), (0.0, 0.0, 2.8)])
def test_an_impulse_lands_in_the_cell_that_the_motion_says(grid, yaw_change, start):
    previous = pose(*start)
    x, y, yaw = start
    current = pose(x + 4.0 * math.cos(yaw + 0.2), y + 4.0 * math.sin(yaw + 0.2), yaw + yaw_change)
    motion = torch.from_numpy(ego_motion(previous, current, LIDAR2EGO))[None].float()
    now_to_before = np.linalg.inv(previous @ LIDAR2EGO) @ current @ LIDAR2EGO
    shift = bev_shift(motion, grid)[0]
    low, extent = torch.tensor(grid.pc_range[:2]), torch.tensor(grid.extent[:2])
    tested = 0
    for point in ([12.0, 7.0], [-20.0, 14.0], [3.0, -18.0], [25.0, 1.0]):
        before = (now_to_before @ np.array([*point, 0.0, 1.0]))[:2]
        column, row = cell_of(grid, before)
        if not (0 <= column < grid.bev_w and 0 <= row < grid.bev_h):
            continue
        # A blob of 3 × 3 cells in the previous BEV; its centre of mass is read in the current one.
        blob = torch.zeros(grid.bev_h, grid.bev_w)
        blob[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = 1
        aligned = rotate_bev(blob.reshape(1, -1, 1), motion[:, 17], grid).reshape(
            1, 1, grid.bev_h, grid.bev_w
        )
        centres = torch.from_numpy(grid.centres()).float()
        where = (centres - low) / extent + shift  # as the temporal attention reads the history
        sampled = F.grid_sample(aligned, 2 * where[None] - 1, align_corners=False)[0, 0]
        if sampled.sum() < 5:
            continue
        found = (sampled[..., None] * centres).sum((0, 1)) / sampled.sum()
        assert np.abs(found.numpy() - point).max() < 1.0 * max(grid.cell_size)
        tested += 1
    assert tested >= 2


def test_the_default_centre_is_the_vehicle():
    assert_close(lidar_origin_pixel(SQUARE), (32.0, 32.0))
    assert_close(lidar_origin_pixel(ASYMMETRIC), (40 / 100 * 64, 30 / 64 * 48))


def test_a_fixed_upstream_centre_differs():
    bev = torch.rand(1, 64 * 64, 2)
    angle = torch.tensor([20.0])
    assert not torch.equal(rotate_bev(bev, angle, SQUARE), rotate_bev(bev, angle, SQUARE, (100, 100)))


def test_each_sample_turns_by_its_own_angle_and_the_input_stays():
    bev = torch.rand(3, 64 * 64, 2)
    kept = bev.clone()
    angles = torch.tensor([0.0, 90.0, -33.0])
    turned = rotate_bev(bev, angles, SQUARE)
    assert torch.equal(bev, kept)
    assert torch.equal(turned[0], bev[0])
    for i in range(3):
        assert torch.equal(turned[i : i + 1], rotate_bev(bev[i : i + 1], angles[i : i + 1], SQUARE))
    four_times = bev
    for _ in range(4):
        four_times = rotate_bev(four_times, torch.full((3,), 90.0), SQUARE)
    assert torch.equal(four_times, bev)


def test_clear_motion_keeps_what_is_not_a_change():
    motion = torch.arange(1.0, 37.0).reshape(2, 18)
    cleared = clear_motion(motion, torch.tensor([True, False]))
    assert torch.equal(cleared[0], motion[0])
    assert cleared[1].nonzero().flatten().tolist() == list(range(3, 17))


def test_no_history_ignores_the_motion_since():
    torch.manual_seed(0)
    grid = {"pc_range": (-50.0, -50.0, -5.0, 50.0, 50.0, 3.0), "bev_h": 4, "bev_w": 4}
    encoder = BEVEncoder(**grid, embed_dims=8, num_layers=1, num_heads=2, num_cams=1).eval()
    features, cameras = [torch.randn(1, 1, 8, 4, 6)], torch.eye(4)[None, None]
    motion = torch.randn(1, 18)
    still = motion.clone()
    still[:, :3] = still[:, 17] = 0
    assert_close(encoder(features, cameras, motion, (8, 12)), encoder(features, cameras, still, (8, 12)))


def test_temporal_attention_gradients_in_float64():
    torch.manual_seed(0)
    attention = TemporalSelfAttention(embed_dims=4, num_heads=2, num_points=2, dropout=0.0).double()
    torch.nn.init.normal_(attention.attention_weights.weight)
    tensors = [torch.randn(2, 6, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    reference = torch.rand(2, 2, 6, 2, dtype=torch.float64)
    pos = torch.randn(1, 6, 4, dtype=torch.float64)

    def attend(query, history, current):
        return attention(query, pos, torch.stack([history, current], dim=1), reference, (2, 3))

    assert torch.autograd.gradcheck(attend, tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"embed_dims": 9}, "even"), ({"num_levels": 5}, "num_level_embeds"), ({"bev_h": 0}, "bev_h")],
)
def test_bad_encoder_settings(change, message):
    good = {"pc_range": (-50.0, -50.0, -5.0, 50.0, 50.0, 3.0), "bev_h": 4, "bev_w": 4, "embed_dims": 8}
    with pytest.raises(ValueError, match=message):
        BEVEncoder(**{**good, **change})


def test_features_that_do_not_fit_are_named():
    encoder = BEVEncoder(pc_range=(-50, -50, -5, 50, 50, 3), bev_h=4, bev_w=4, embed_dims=8)
    arguments = (torch.eye(4).expand(1, 6, 4, 4), torch.zeros(1, 18), (8, 12))
    with pytest.raises(ValueError, match="feature level"):
        encoder([torch.zeros(1, 6, 8, 2, 3)] * 2, *arguments)
    with pytest.raises(ValueError, match="out_channels"):
        encoder([torch.zeros(1, 6, 16, 2, 3)], *arguments)

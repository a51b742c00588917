"""Each switch of `UpstreamCompat`: what it changes, and that it is off by default."""

from dataclasses import asdict

import pytest
import torch
from torch.testing import assert_close

from perception.models import BEVEncoder
from perception.models.box_coder import BoxCoder
from perception.models.camera_projection import plan_cameras
from perception.models.map_slicer import MapSlicer
from perception.models.temporal_self_attention import TemporalSelfAttention
from perception.models.upstream_compat import UpstreamCompat
from perception.structures import BEVGrid, MapGrid, bev_shift
from tests.models.parity_fixtures import read_arrays
from tests.models.small import GRID, IMAGE, ring_of_cameras, small_model

BATCH = 2


def make_encoder(**compat):
    torch.manual_seed(0)
    encoder = BEVEncoder(**GRID, num_layers=2, num_heads=2, dropout=0.0, upstream_compat=compat).eval()
    for name, parameter in encoder.named_parameters():
        if "sampling_offsets.weight" in name or "attention_weights.weight" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return encoder


def make_inputs():
    """Two samples that differ in everything."""
    generator = torch.Generator().manual_seed(1)
    motion = torch.randn(BATCH, 18, generator=generator)
    motion[:, :2] *= 4
    motion[:, 17] *= 20
    return {
        "mlvl_feats": [torch.randn(BATCH, 6, 16, 4, 6, generator=generator)],
        "lidar2img": torch.stack([ring_of_cameras(), ring_of_cameras(height=1.5).roll(1, 0)]),
        "ego_motion": motion,
        "image_shape": IMAGE,
        "prev_bev": torch.randn(BATCH, GRID["bev_h"] * GRID["bev_w"], 16, generator=generator),
        "has_prev": torch.tensor([True, True]),
    }


def row(inputs, index):
    rows = slice(index, index + 1)
    features = [level[rows] for level in inputs["mlvl_feats"]]
    rest = {key: inputs[key][rows] for key in ("lidar2img", "ego_motion", "prev_bev", "has_prev")}
    return {"mlvl_feats": features, "image_shape": inputs["image_shape"], **rest}


def test_all_switches_are_off_by_default():
    assert not any(asdict(UpstreamCompat()).values())
    encoder, inputs = make_encoder(), make_inputs()
    together = encoder(**inputs)
    for index in range(BATCH):
        assert_close(together[index], encoder(**row(inputs, index))[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("compat", [{"rotate_center": (100, 100)}, {"aliased_shift": True}])
def test_a_defect_of_single_samples_shows_only_with_history(compat):
    inputs, correct, upstream = row(make_inputs(), 0), make_encoder(), make_encoder(**compat)
    assert float((correct(**inputs) - upstream(**inputs)).detach().abs().max()) > 0.1
    inputs["prev_bev"] = inputs["has_prev"] = None
    assert torch.equal(correct(**inputs), upstream(**inputs))


def test_aliased_shift_moves_the_current_reference_points_too():
    motion, has_prev = make_inputs()["ego_motion"], torch.tensor([True, False])
    encoder = make_encoder()
    shift = bev_shift(motion, encoder.grid)[0]
    assert float(shift.abs().min()) > 0.01
    correct = encoder.temporal_reference(motion, has_prev)
    aliased = make_encoder(aliased_shift=True).temporal_reference(motion, has_prev)
    assert_close(correct[0, 1], encoder.ref_2d)
    assert_close(aliased[0, 1], encoder.ref_2d + shift)
    assert torch.equal(aliased[:, 0], correct[:, 0])
    assert torch.equal(aliased[1], correct[1])


@pytest.mark.parametrize("switch", ["first_sample_cameras", "mixed_temporal_query"])
def test_a_defect_at_batch_above_1_leaves_the_first_sample_alone(switch):
    inputs, correct, upstream = make_inputs(), make_encoder(), make_encoder(**{switch: True})
    expected, found = correct(**inputs).detach(), upstream(**inputs).detach()
    assert_close(found[0], expected[0], atol=1e-5, rtol=0)
    assert float((found[1] - expected[1]).abs().max()) > 0.1
    assert_close(upstream(**row(inputs, 1)), correct(**row(inputs, 1)))


@pytest.mark.parametrize("max_cameras", [None, 1])
def test_first_sample_cameras_serve_the_first_samples_queries(max_cameras):
    reference = torch.rand(BATCH, 2, 4, 2, 2)
    mask = torch.zeros(BATCH, 2, 4, 2, dtype=torch.bool)
    mask[0, 0, :2], mask[1, 0, 1:] = True, True  # sample 0 sees the queries 0 and 1, sample 1 those from 1
    upstream = plan_cameras(reference, mask, max_cameras_per_cell=max_cameras, first_sample=True)
    assert upstream.weight[:, :, 0].tolist() == [[1, 1, 0, 0], [1, 1, 0, 0]]
    assert not upstream.weight[:, :, 1:].any()
    assert_close(upstream.reference_points[:, :2, 0], reference[:, 0, :2])


def test_mixed_temporal_query_reads_value_of_the_first_half():
    torch.manual_seed(0)
    attention = TemporalSelfAttention(embed_dims=4, num_heads=2, dropout=0.0, mixed_query=True)
    torch.nn.init.normal_(attention.sampling_offsets.weight)
    seen = {}
    attention.sampling_offsets.register_forward_hook(lambda _m, args, _out: seen.update(both=args[0]))
    query, history, current = (torch.randn(BATCH, 6, 4) for _ in range(3))
    queue = torch.stack([history, current], dim=1)
    attention(query, torch.zeros(1, 6, 4), queue, torch.rand(BATCH, 2, 6, 2), (2, 3))
    assert_close(seen["both"], torch.cat([torch.stack([history[0], current[0]]), query], dim=-1))


@pytest.mark.parametrize("flags", [[True, False], [False, True]])
def test_first_sample_history_decides_for_the_batch(flags):
    inputs, correct, upstream = make_inputs(), make_encoder(), make_encoder(first_sample_history=True)
    inputs["ego_motion"][:, [0, 1, 2, 17]] *= torch.tensor(flags)[:, None]
    inputs["has_prev"] = torch.tensor(flags)
    found, expected = upstream(**inputs).detach(), correct(**inputs).detach()
    assert_close(found[0], expected[0], atol=1e-5, rtol=0)
    assert float((found[1] - expected[1]).abs().max()) > 0.1
    if flags[0]:  # the second sample's row of `prev_bev` is taken, though it has no history
        inputs["has_prev"] = torch.tensor([True, True])
        assert_close(found, correct(**inputs))


def test_lower_score_threshold():
    scores, codes = torch.tensor([[-3.0], [-2.0], [-2.05]]), torch.zeros(3, 10)
    settings = {"post_center_range": (-1, -1, -1, 1, 1, 1), "score_threshold": 0.5}
    assert len(BoxCoder(**settings).decode(scores, codes).scores) == 0
    # 0.5 · 0.9¹⁴ = 0.1144 is the first product below sigmoid(−2) = 0.1192, and above sigmoid(−2.05) = 0.1140.
    kept = BoxCoder(**settings, lower_threshold=True).decode(scores, codes).scores
    assert_close(kept, torch.tensor([-2.0]).sigmoid())
    nothing_above = torch.full((3, 1), -8.0)
    assert len(BoxCoder(**settings, lower_threshold=True).decode(nothing_above, codes).scores) == 3


def test_map_divisors_stretch_the_map():
    grid = BEVGrid((-51.2, -51.2, -5.0, 51.2, 51.2, 3.0), 150, 150)
    centres = torch.from_numpy(grid.centres()).float().permute(2, 0, 1)[None]  # each cell holds its (x, y)
    wanted = torch.from_numpy(MapGrid().centres()).float().permute(2, 0, 1)[None]
    true_divisor = 51.2 - 51.2 / 150

    def sample(divisor):
        return MapSlicer(bev_grid=grid, map_grid=MapGrid(), divisors=(divisor, divisor))(centres)

    assert_close(sample(true_divisor), wanted, atol=1e-3, rtol=0)
    assert_close(sample(2 * true_divisor), wanted / 2, atol=1e-3, rtol=0)


def test_bin_zes_map_with_its_real_grids():
    arrays = read_arrays("micro_seg_slicer_real")
    grid = BEVGrid((-51.2, -51.2, -5.0, 51.2, 51.2, 3.0), 150, 150)
    bev = arrays["bev_embed"].permute(1, 2, 0).unflatten(2, (150, 150))
    upstream = MapSlicer(bev_grid=grid, map_grid=MapGrid(), divisors=(50.86, 50.86))
    assert_close(upstream.locations[0, :, 0], arrays["norm_map_x"], atol=2e-7, rtol=0)
    assert_close(upstream.locations[:, 0, 1], arrays["norm_map_y"], atol=2e-7, rtol=0)
    # The features are noise with steps of up to 8 between cells: a position's last bit moves the result by 3e-5.
    assert_close(upstream(bev), arrays["output"], atol=1e-4, rtol=0)
    difference = (MapSlicer(bev_grid=grid, map_grid=MapGrid())(bev) - arrays["output"]).abs().max()
    assert 1e-3 < float(difference) < 1e-2  # cells of 0.68 m instead of 0.6827 m: at most 0.001 of a cell


def test_the_detector_hands_the_switches_to_its_parts():
    compat = {"aliased_shift": True, "drop_unknown_velocity": True, "map_divisors": [50.0, 60.0]}
    model = small_model(upstream_compat=compat)
    assert model.bev_encoder.compat.aliased_shift
    assert model.box_head.compat.drop_unknown_velocity
    assert_close(model.seg_head.slicer.locations[0, 0], torch.tensor([-29.25 / 60, -14.25 / 50]))
    assert not small_model().bev_encoder.compat.aliased_shift


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alias_shift": True}, "aliased_shift"),
        ({"aliased_shift": 1}, "True or False"),
        ({"rotate_center": 100}, "two numbers"),
        ({"map_divisors": (1.0,)}, "two numbers"),
    ],
)
def test_bad_switches_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        UpstreamCompat.read(settings)

import pytest
import torch
from torch.testing import assert_close

from perception.models.camera_projection import pillar_points, plan_cameras, project_pillars
from perception.models.spatial_cross_attention import SpatialCrossAttention
from perception.ops import multi_scale_deformable_attention
from perception.structures import BEVGrid, project_points
from tests.models.small import IMAGE, ring_of_cameras

GRID = BEVGrid((-40.0, -30.0, -5.0, 60.0, 34.0, 3.0), 8, 10)


def make_projection(num_samples=2, *, num_cams=3):
    cameras = torch.stack([ring_of_cameras(height=0.3 + 0.5 * i)[:num_cams] for i in range(num_samples)])
    return project_pillars(pillar_points(GRID, 4), cameras, IMAGE)


def make_attention(**settings):
    torch.manual_seed(0)
    attention = SpatialCrossAttention(embed_dims=8, num_heads=2, dropout=0.0, **settings)
    torch.nn.init.normal_(attention.sampling_offsets.weight, std=2.0)  # cells: far beyond the maps' borders
    torch.nn.init.normal_(attention.attention_weights.weight)
    torch.nn.init.normal_(attention.output_proj.bias)
    return attention


def attend_camera_by_camera(attention, query, features, shapes, reference, mask):
    """The definition, one sample and one camera after the other."""
    batch, num_cams = mask.shape[:2]
    value = attention.value_proj(features).unflatten(0, (batch, num_cams)).unflatten(-1, (2, -1))
    size = torch.tensor([(width, height) for height, width in shapes])
    rows = []
    for sample in range(batch):
        offsets = attention.sampling_offsets(query[sample]).view(-1, 2, len(shapes), 2, 4, 2)
        weights = attention.attention_weights(query[sample]).view(-1, 2, len(shapes) * 8).softmax(-1)
        total, hits = 0, mask[sample].any(-1).sum(0)
        for camera in range(num_cams):
            where = reference[sample, camera][:, None, None, None] + offsets / size[:, None, None]
            out = multi_scale_deformable_attention(
                value[sample, camera][None],
                shapes,
                where.reshape(1, -1, 2, len(shapes), 8, 2),
                weights.view(1, -1, 2, len(shapes), 8),
            )[0]
            total = total + torch.where(mask[sample, camera].any(-1)[:, None], out, 0)
        rows.append(query[sample] + attention.output_proj(total / hits.clamp(min=1)[:, None]))
    return torch.stack(rows)


def test_pillars_stand_on_the_cell_centres():
    points = pillar_points(GRID, 4)
    assert points.shape == (80, 4, 3)
    assert_close(points[13, 0], torch.tensor([-40.0 + 3.5 * 10, -30.0 + 1.5 * 8, -4.5]))
    assert_close(points[0, :, 2], torch.tensor([-4.5, -4.5 + 7 / 3, -4.5 + 14 / 3, 2.5]))


def test_projection_is_that_of_structures():
    cameras = ring_of_cameras()
    points = pillar_points(GRID, 4)
    reference, mask = project_pillars(points, cameras[None], IMAGE)
    uv, depth = project_points(points[None], cameras[:, None, None])
    inside = (depth > 1e-5) & (uv > 0).all(-1) & (uv[..., 0] < IMAGE[1]) & (uv[..., 1] < IMAGE[0])
    assert torch.equal(mask[0], inside)
    assert 0 < int(mask.sum()) < mask.numel()
    assert_close(reference[0][mask[0]] * torch.tensor([IMAGE[1], IMAGE[0]]), uv[inside], atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("max_cameras", [None, 2])
@pytest.mark.parametrize("shapes", [[(4, 6)], [(4, 6), (2, 3)]])
def test_attention_is_that_of_the_definition(max_cameras, shapes):
    reference, mask = make_projection()
    hits = mask.any(-1).sum(1)
    assert int(hits.max()) == 2  # so that two slots are needed, and enough
    assert int(hits.min()) == 0
    attention = make_attention(num_levels=len(shapes))
    query = torch.randn(2, 80, 8, requires_grad=True)
    features = torch.randn(6, sum(h * w for h, w in shapes), 8, requires_grad=True)
    found = attention(
        query, features, shapes, plan_cameras(reference, mask, max_cameras_per_cell=max_cameras)
    )
    expected = attend_camera_by_camera(attention, query, features, shapes, reference, mask)
    assert_close(found, expected, atol=2e-5, rtol=1e-5)
    grad = torch.randn_like(found)
    wanted = (query, features, *attention.parameters())
    for got, should in zip(
        torch.autograd.grad(found, wanted, grad), torch.autograd.grad(expected, wanted, grad), strict=True
    ):
        assert_close(got, should, atol=2e-4, rtol=1e-4)


def test_shapes_of_a_plan_do_not_depend_on_what_is_seen():
    for mask in (torch.zeros(1, 3, 5, 4, dtype=torch.bool), torch.rand(1, 3, 5, 4) > 0.9):
        mask[:, 2] = False
        plan = plan_cameras(torch.rand(1, 3, 5, 4, 2), mask, max_cameras_per_cell=2)
        assert plan.reference_points.shape == (1, 5, 2, 4, 2)
        assert plan.camera_idx is not None
        assert plan.camera_idx.shape == plan.weight.shape == (1, 5, 2)
        assert_close(plan.weight.sum(-1), mask.any(-1).any(1).float())


def test_a_cell_that_too_many_cameras_see_is_refused():
    mask = torch.ones(1, 3, 5, 4, dtype=torch.bool)
    with pytest.raises(
        ValueError, match="seen by 3 cameras. Set model.bev_encoder.max_cameras_per_cell, now 2"
    ):
        plan_cameras(torch.rand(1, 3, 5, 4, 2), mask, max_cameras_per_cell=2)


def test_a_cell_that_no_camera_sees_keeps_its_value_plus_the_bias():
    torch.manual_seed(0)
    attention = SpatialCrossAttention(embed_dims=8, num_heads=2, dropout=0.0)
    torch.nn.init.normal_(attention.output_proj.bias)
    cameras = ring_of_cameras()[None, :1]
    reference, mask = project_pillars(pillar_points(GRID, 4), cameras, IMAGE)
    unseen = ~mask[0, 0].any(-1)
    assert unseen.any()
    assert not unseen.all()
    query, features = torch.randn(1, 80, 8), torch.randn(1, 24, 8)
    out = attention(query, features, [(4, 6)], plan_cameras(reference, mask))
    assert_close(out[0, unseen], query[0, unseen] + attention.output_proj.bias)
    assert not torch.allclose(out[0, ~unseen], query[0, ~unseen] + attention.output_proj.bias)


def test_no_camera_sees_anything():
    mask = torch.zeros(1, 2, 80, 4, dtype=torch.bool)
    plan = plan_cameras(torch.full((1, 2, 80, 4, 2), 1e9), mask)
    attention = SpatialCrossAttention(embed_dims=8, num_heads=2, dropout=0.0)
    query = torch.randn(1, 80, 8)
    out = attention(query, torch.randn(2, 24, 8), [(4, 6)], plan)
    assert_close(out, query + attention.output_proj.bias)


def test_two_cameras_are_averaged():
    torch.manual_seed(0)
    attention = SpatialCrossAttention(embed_dims=8, num_heads=2, dropout=0.0)
    reference = torch.rand(1, 2, 5, 4, 2)
    visible = torch.ones(1, 2, 5, 4, dtype=torch.bool)
    query, features = torch.randn(1, 5, 8), torch.randn(2, 24, 8)
    both = attention(query, features, [(4, 6)], plan_cameras(reference, visible))
    single = [
        attention(query, features[c : c + 1], [(4, 6)], plan_cameras(reference[:, c : c + 1], visible[:, :1]))
        for c in range(2)
    ]
    assert_close(both, (single[0] + single[1]) / 2)


def test_gradients_in_float64():
    torch.manual_seed(0)
    attention = SpatialCrossAttention(embed_dims=4, num_heads=2, dropout=0.0).double()
    reference, mask = torch.rand(1, 2, 5, 4, 2), torch.rand(1, 2, 5, 4) > 0.6
    plan = plan_cameras(reference.double(), mask)
    plan = type(plan)(plan.reference_points, plan.camera_idx, plan.weight.double())
    query = torch.randn(1, 5, 4, dtype=torch.float64, requires_grad=True)
    features = torch.randn(2, 24, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda q, f: attention(q, f, [(4, 6)], plan), (query, features))


def test_points_must_divide_among_anchors():
    with pytest.raises(ValueError, match="multiple of num_points_in_pillar"):
        SpatialCrossAttention(embed_dims=8, num_heads=2, num_points=6)

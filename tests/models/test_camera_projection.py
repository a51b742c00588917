import pytest
import torch
from torch.testing import assert_close

from perception.models.camera_projection import pillar_points, plan_cameras, project_pillars
from perception.models.spatial_cross_attention import SpatialCrossAttention
from perception.structures import BEVGrid, project_points
from tests.models.small import IMAGE, ring_of_cameras

GRID = BEVGrid((-40.0, -30.0, -5.0, 60.0, 34.0, 3.0), 8, 10)


def make_plan(num_samples=2, *, static=False, num_cams=3):
    cameras = torch.stack([ring_of_cameras(height=0.3 + 0.5 * i)[:num_cams] for i in range(num_samples)])
    return plan_cameras(*project_pillars(pillar_points(GRID, 4), cameras, IMAGE), static=static)


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


def test_static_plan_gives_the_same_attention():
    torch.manual_seed(0)
    attention = SpatialCrossAttention(embed_dims=8, num_heads=2, dropout=0.0)
    torch.nn.init.normal_(attention.sampling_offsets.weight, std=0.2)
    torch.nn.init.normal_(attention.attention_weights.weight)
    query, features = torch.randn(2, 80, 8), torch.randn(6, 4 * 6, 8)
    gathered, everything = make_plan(), make_plan(static=True)
    assert gathered.reference_points.shape[1] < everything.reference_points.shape[1] == 80
    assert_close(
        attention(query, features, [(4, 6)], gathered), attention(query, features, [(4, 6)], everything)
    )


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
    plan = type(plan)(plan.reference_points, plan.query_idx, plan.weight.double())
    query = torch.randn(1, 5, 4, dtype=torch.float64, requires_grad=True)
    features = torch.randn(2, 24, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda q, f: attention(q, f, [(4, 6)], plan), (query, features))


def test_points_must_divide_among_anchors():
    with pytest.raises(ValueError, match="multiple of num_points_in_pillar"):
        SpatialCrossAttention(embed_dims=8, num_heads=2, num_points=6)

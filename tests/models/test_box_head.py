"""Matching, losses, decoding and query set-up of the box head."""

import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from perception.checkpoint.upstream import convert_code
from perception.engine.parity.convention import convert_boxes
from perception.models import BoxHead
from perception.models.box_assigner import HungarianAssigner
from perception.models.box_coder import BoxCoder
from perception.models.box_head import BoxOutputs, BoxTargets
from perception.models.box_losses import MatchedTargets, focal_loss, layer_losses
from perception.structures import decode_boxes, encode_boxes
from tests.models.parity_fixtures import read_arrays
from tests.models.small import GRID

INF = float("inf")


def make_head(**changes):
    torch.manual_seed(0)
    return BoxHead(**{"num_query": 12, "num_layers": 2, "num_heads": 2, "dropout": 0.0, **GRID, **changes})


def random_boxes(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.randn(count, 9, generator=generator) * 5
    boxes[:, 3:6] = boxes[:, 3:6].abs() + 0.5
    return boxes


@pytest.mark.parametrize(("queries", "targets"), [(5, 4), (4, 4), (3, 5)])
def test_assignment_is_the_cheapest_of_all(queries, targets):
    torch.manual_seed(1)
    scores, codes = torch.randn(3, queries, 10), torch.randn(3, queries, 10) * 3
    gt_codes, labels = encode_boxes(random_boxes(targets)), torch.randint(0, 10, (targets,))
    assigner = HungarianAssigner()
    cost = assigner.cls_cost(scores, labels) + assigner.box_cost(codes, gt_codes)
    for matrix, (query_idx, gt_idx) in zip(
        cost, assigner.assign(scores, codes, gt_codes, labels), strict=True
    ):
        assert len(query_idx) == min(queries, targets)
        found = matrix[query_idx, gt_idx].sum()
        if queries >= targets:
            options = [
                sum(matrix[q, g] for g, q in enumerate(p))
                for p in itertools.permutations(range(queries), targets)
            ]
        else:
            options = [
                sum(matrix[q, g] for q, g in enumerate(p))
                for p in itertools.permutations(range(targets), queries)
            ]
        assert_close(found, torch.stack(options).min())


def test_velocity_does_not_enter_the_match():
    gt = encode_boxes(random_boxes(3))
    gt[:, 8:] = torch.nan
    pairs = HungarianAssigner().assign(
        torch.zeros(1, 4, 10), torch.randn(1, 4, 10), gt, torch.tensor([0, 1, 2])
    )
    assert len(pairs[0][0]) == 3


def test_a_box_that_is_not_finite_is_named():
    gt = encode_boxes(random_boxes(2))
    gt[0, 0] = torch.nan
    with pytest.raises(ValueError, match="a ground-truth box holds NaN"):
        HungarianAssigner().assign(torch.zeros(1, 4, 10), torch.zeros(1, 4, 10), gt, torch.tensor([0, 1]))


@pytest.mark.parametrize("value", [torch.nan, INF, -INF])
def test_predictions_that_are_not_finite_are_matched_last(value):
    codes, scores = torch.zeros(1, 4, 10), torch.zeros(1, 4, 10)
    codes[0, 0, 2] = value
    scores[0, 1] = torch.nan
    ((query, _),) = HungarianAssigner().assign(
        scores, codes, encode_boxes(random_boxes(2)), torch.tensor([0, 1])
    )
    assert query.tolist() == [2, 3]
    codes[...] = value
    ((query, _),) = HungarianAssigner().assign(
        scores, codes, encode_boxes(random_boxes(2)), torch.tensor([0, 1])
    )
    assert len(query) == 2


def test_focal_loss_by_hand():
    logits, targets = torch.tensor([0.0, 0.0, 2.0, -3.0]), torch.tensor([1, 0, 1, 0])
    p = [0.5, 0.5, 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(3))]
    expected = [
        0.25 * 0.5**2 * -math.log(p[0]),
        0.75 * 0.5**2 * -math.log(1 - p[1]),
        0.25 * (1 - p[2]) ** 2 * -math.log(p[2]),
        0.75 * p[3] ** 2 * -math.log(1 - p[3]),
    ]
    assert_close(focal_loss(logits, targets), torch.tensor(expected))


def test_focal_loss_gradients_and_extremes():
    logits = torch.randn(6, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 1, 0, 1, 1, 0])
    assert torch.autograd.gradcheck(lambda x: focal_loss(x, targets), (logits,))
    assert focal_loss(torch.tensor([-200.0, 200.0]), torch.tensor([1, 0])).isfinite().all()


def test_layer_losses_by_hand():
    wanted = torch.zeros(1, 3, 10)
    wanted[0, 0] = 1.0
    wanted[0, 1, 8:] = torch.nan
    targets = MatchedTargets(torch.tensor([[2, 0, 3]]), wanted, torch.tensor([[True, True, False]]))
    codes = torch.full((1, 3, 10), 0.5)
    weights = torch.tensor([1.0] * 8 + [0.2, 0.2])
    losses = layer_losses(torch.zeros(1, 3, 3), codes, targets, weights, cls_weight=2.0, box_weight=0.25)
    assert_close(losses.box, torch.tensor(0.25 * (8 * 0.5 + 8 * 0.5) / 2))
    assert_close(losses.velocity, torch.tensor(0.25 * 0.2 * 2 * 0.5 / 1))
    positive, negative = 0.25 * 0.25 * math.log(2), 0.75 * 0.25 * math.log(2)
    assert_close(losses.cls, torch.tensor(2.0 * (2 * positive + 7 * negative) / 2))
    assert float(losses.num_boxes) == 2
    assert float(losses.num_velocities) == 1


def test_unknown_velocity_keeps_the_box_where_upstream_drops_it():
    arrays = {k.removeprefix("nan_velocity/"): v for k, v in read_arrays("micro_loss_edge").items()}
    head = make_head(pc_range=(-51.2, -51.2, -5.0, 51.2, 51.2, 3.0))
    outputs = BoxOutputs(arrays["all_cls_scores"], convert_code(arrays["all_bbox_preds"]), 1)
    losses = head.loss(outputs, [BoxTargets(convert_boxes(arrays["gt_boxes_bottom"]), arrays["gt_labels"])])
    assert_close(losses["cls.loss_focal"], arrays["loss/loss_cls"][0], atol=2e-5, rtol=0)
    assert losses["box.loss_l1"] + losses["velocity.loss_l1"] > arrays["loss/loss_bbox"]


def test_encode_then_decode():
    boxes = random_boxes(20)
    boxes[:, 6] = torch.linspace(-3.1, 3.1, 20)
    scores = torch.full((20, 10), -9.0)
    scores[torch.arange(20), torch.arange(20) % 10] = torch.linspace(3, -3, 20)
    coder = BoxCoder(post_center_range=(-INF, -INF, -INF, INF, INF, INF), max_num=20)
    decoded = coder.decode(scores, encode_boxes(boxes))
    assert_close(decoded.boxes, boxes, atol=1e-5, rtol=1e-5)
    assert decoded.labels.tolist() == [i % 10 for i in range(20)]


def test_centre_filter_and_threshold():
    codes = torch.zeros(3, 10)
    codes[1, 0] = 20.0
    scores = torch.tensor([[2.0], [3.0], [-3.0]])
    coder = BoxCoder(post_center_range=(-10, -10, -10, 10, 10, 10), max_num=3, score_threshold=0.5)
    decoded = coder.decode(scores, codes)
    assert_close(decoded.scores, torch.tensor([2.0]).sigmoid())
    with pytest.raises(ValueError, match="post_center_range"):
        BoxCoder(post_center_range=(1, 2, 3))


def test_a_diverged_model_still_has_boxes():
    """Sizes beyond float32 are held; what is not finite at all is left to the metric, which counts it."""
    codes = torch.zeros(3, 10)
    codes[0, 2:4] = torch.tensor([200.0, -200.0])
    codes[1, 0] = torch.nan
    coder = BoxCoder(post_center_range=(-10, -10, -10, 10, 10, 10), score_threshold=0.9)
    decoded = coder.decode(torch.tensor([[5.0], [-5.0], [-5.0]]), codes)
    assert_close(decoded.boxes[0, 3:6], torch.tensor([1e3, 1e-3, 1.0]))
    assert decoded.boxes[1].isnan().any()
    assert len(decoded.boxes) == 2
    assert codes[0, 2] == 200


@pytest.mark.parametrize("groups", [1, 3])
def test_grid_references_cover_the_bev(groups):
    head = make_head(num_query=64, num_query_groups=groups, reference_init="grid")
    query_pos = head.query_embedding.weight[:, : head.embed_dims]
    points = head.reference_points(query_pos).sigmoid().detach().unflatten(0, (groups, 64))
    for group in points:
        counts = torch.histogramdd(group[:, :2], bins=[4, 4], range=[0.0, 1.0, 0.0, 1.0]).hist
        assert counts.min() >= 2  # 4 on average in each sixteenth
    assert_close(points[..., 2], torch.full_like(points[..., 2], 0.5), atol=1e-4, rtol=0)


def test_options_add_no_parameters_when_off():
    plain, grid = make_head(), make_head(reference_init="grid")
    assert {k: v.shape for k, v in plain.state_dict().items()} == {
        k: v.shape for k, v in grid.state_dict().items()
    }
    assert len(make_head(with_box_refine=False).reg_branches) == 1


def test_groups_do_not_see_each_other():
    head = make_head(num_query_groups=2).train()
    bev = torch.randn(1, 120, 16)
    both = head(bev)
    with torch.no_grad():
        head.query_embedding.weight[12:] += 1.0
    other = head(bev)
    assert_close(both.codes[:, :, :12], other.codes[:, :, :12])
    assert not torch.allclose(both.codes[:, :, 12:], other.codes[:, :, 12:])
    assert_close(head.eval()(bev).codes, both.codes[:, :, :12])


def test_without_refinement_references_stay():
    head = make_head(with_box_refine=False)
    losses = head.loss(head(torch.randn(1, 120, 16)), [BoxTargets(random_boxes(2), torch.tensor([1, 2]))])
    sum(value for key, value in losses.items() if "loss_" in key).backward()
    assert all(p.grad is not None for p in head.parameters() if p.requires_grad)


def test_targets_of_a_perfect_prediction_cost_nothing():
    head = make_head(num_query=3)
    boxes = random_boxes(3)
    boxes[:, 2] = -1.0
    codes = encode_boxes(boxes)[None, None]
    scores = torch.full((1, 1, 3, 10), -20.0)
    scores[0, 0, torch.arange(3), torch.arange(3)] = 20.0
    losses = head.loss(BoxOutputs(scores, codes, 1), [BoxTargets(boxes, torch.arange(3))])
    assert float(losses["box.loss_l1"]) == pytest.approx(0, abs=1e-5)
    assert float(losses["cls.loss_focal"]) == pytest.approx(0, abs=1e-5)
    decoded = head.predict(BoxOutputs(scores, codes, 1))[0]
    assert_close(decoded.boxes[:3].sort(0).values, decode_boxes(codes[0, 0]).sort(0).values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"code_weights": (1.0,)}, "code_weights"),
        ({"num_query": 0}, "num_query"),
        ({"code_scale": (1.0,)}, "10 positive numbers"),
        ({"code_scale": (1.0,) * 9 + (0.0,)}, "10 positive numbers"),
        ({"code_scale": (2.0,) * 10}, "must be 1 for the centre"),
    ],
)
def test_bad_settings(change, message):
    with pytest.raises(ValueError, match=message):
        make_head(**change)


def test_code_scale_is_the_last_layer_scaled():
    scale = [1.0, 1.0, 3.0, 3.0, 1.0, 3.0, 2.0, 2.0, 30.0, 30.0]
    plain, scaled = make_head(), make_head(code_scale=scale)
    scaled.load_state_dict(plain.state_dict())
    with torch.no_grad():
        for branch in plain.reg_branches:
            branch[-1].weight.mul_(torch.tensor(scale)[:, None])
            branch[-1].bias.mul_(torch.tensor(scale))
    bev = torch.randn(1, 120, 16)
    expected, found = plain(bev), scaled(bev)
    assert_close(found.codes, expected.codes)
    assert_close(found.cls_scores, expected.cls_scores)

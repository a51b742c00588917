"""The perspective loss: the right boxes in the right cells, targets that geometry gives, and a model that uses it."""

import math

import pytest
import torch
from torch.testing import assert_close

from perception.models import PerspectiveHead
from perception.models.box_head import BoxTargets
from perception.models.perspective_head import find_visible
from tests.models.small import IMAGE, make_batch, make_item, ring_of_cameras, small_model

FORWARD, RIGHT = 0, 1  # of the ring's cameras, 60° apart, clockwise


def box(x, y, z=0.0, *, size=(4.0, 2.0, 2.0), yaw=0.0):
    return torch.tensor([[x, y, z - size[2] / 2, *size, yaw, 0.0, 0.0]])


def make(**kwargs):
    torch.manual_seed(0)
    return PerspectiveHead(**{"embed_dims": 8, "num_levels": 1, "num_classes": 3, **kwargs})


def features(stride=12, *, cams=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, cams, 8, IMAGE[0] // stride, IMAGE[1] // stride, generator=generator)


def test_a_box_straight_ahead_is_in_the_middle_of_the_front_camera():
    cameras = ring_of_cameras(height=0.0)
    pairs = find_visible(box(0.0, 20.0), cameras, IMAGE, 1.0)
    assert pairs.camera.tolist() == [FORWARD]
    assert_close(pairs.uv, torch.tensor([[48.0, 30.0]]))
    assert_close(pairs.depth, torch.tensor([20.0]))
    focal = 48 / math.tan(math.radians(35))
    assert_close(pairs.size, torch.tensor([4.0 * focal / 20.0]))


def test_a_box_in_the_overlap_is_seen_twice_and_one_behind_the_range_never():
    cameras = ring_of_cameras(height=0.0)
    angle = math.radians(30)  # from straight ahead to the right: between two cameras of 70°
    pairs = find_visible(box(20 * math.sin(angle), 20 * math.cos(angle)), cameras, IMAGE, 1.0)
    assert pairs.camera.tolist() == [FORWARD, RIGHT]
    assert len(find_visible(box(0.0, 20.0), cameras, IMAGE, 21.0).box) == 0


@pytest.mark.parametrize("bearing", [0.0, 20.0, -25.0])
def test_alpha_is_the_heading_as_seen_from_the_camera(bearing):
    # A vehicle that drives straight away from the camera has alpha 0 wherever it stands.
    angle = math.radians(90 - bearing)  # ccw from x
    pairs = find_visible(
        box(20 * math.cos(angle), 20 * math.sin(angle), yaw=angle), ring_of_cameras(height=0.0), IMAGE, 1.0
    )
    assert_close(pairs.alpha, torch.zeros_like(pairs.alpha), atol=1e-5, rtol=0)


def test_scaling_the_world_leaves_the_apparent_size():
    scale = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0]))
    cameras = ring_of_cameras(height=0.0)
    grown = box(3.0, 20.0)
    grown[:, :6] *= 2
    small, large = (
        find_visible(box(3.0, 20.0), cameras, IMAGE, 1.0),
        find_visible(grown, cameras @ torch.linalg.inv(scale), IMAGE, 1.0),
    )
    assert_close(small.uv, large.uv)
    assert_close(small.size, large.size)


def test_heatmap_is_one_at_the_centre_and_wide_as_the_box_looks():
    head, like = make(), torch.zeros(6, 3, 5, 8)
    scale = torch.tensor([8 / 96, 5 / 60])
    heats = []
    for size in (1.0, 12.0):
        pairs = find_visible(box(0.5, 20.0, size=(size, 1.0, 1.0)), ring_of_cameras(height=0.0), IMAGE, 1.0)
        heats.append(head.heatmap(pairs, torch.tensor([2]), scale, like))
    for heat in heats:
        assert heat[FORWARD, 2, 2, 4] == 1
        assert heat[:, :2].eq(0).all()
        assert heat[1:].eq(0).all()
    assert heats[1][FORWARD, 2, 2, 6] > 2 * heats[0][FORWARD, 2, 2, 6]


def test_loss_vanishes_for_the_right_answer_and_reaches_the_features():
    head = make(embed_dims=9, loss_cls_weight=1.0, loss_box_weight=1.0)
    target = BoxTargets(box(0.0, 20.0, yaw=0.3), torch.tensor([1]))
    cameras = ring_of_cameras(height=0.0)[None]
    with torch.no_grad():
        head.levels[0].weight.copy_(torch.eye(9)[:, :, None, None])
        head.levels[0].bias.zero_()
    right = torch.zeros(1, 6, 9, 5, 8)
    right[:, :, :3] = -12.0
    right[0, FORWARD, 1, 2, 4] = 12.0
    alpha = 0.3 - math.pi / 2
    right[0, FORWARD, 3:, 2, 4] = torch.tensor(
        [math.log(20), math.log(4), math.log(2), math.log(2), math.sin(alpha), math.cos(alpha)]
    )
    losses = head.loss([right], cameras, IMAGE, [target])
    assert losses["cls.loss_perspective"] < 1e-3
    assert losses["box.loss_perspective"] < 1e-5

    wrong = right.clone()
    wrong[0, FORWARD, 3, 2, 4] += 0.5
    wrong.requires_grad_()
    loss = head.loss([wrong], cameras, IMAGE, [target])["box.loss_perspective"]
    assert_close(loss, torch.tensor(0.5), atol=1e-5, rtol=0)
    loss.backward()
    assert wrong.grad[0, FORWARD, 3, 2, 4] == 1


def test_the_nearer_of_two_boxes_in_a_cell_gives_the_geometry():
    head, cameras = make(loss_box_weight=1.0), ring_of_cameras(height=0.0)[None]
    near, far = box(0.0, 10.0), box(0.0, 20.0)
    both = BoxTargets(torch.cat([far, near]), torch.tensor([0, 0]))
    found = head.loss([features()], cameras, IMAGE, [both])["box.loss_perspective"] * 2
    alone = head.loss([features()], cameras, IMAGE, [BoxTargets(near, torch.tensor([0]))])[
        "box.loss_perspective"
    ]
    assert_close(found, alone)


def test_levels_and_samples_are_averaged_as_one():
    head, cameras = make(num_levels=2), ring_of_cameras(height=0.0)[None]
    head.levels[1].load_state_dict(head.levels[0].state_dict())
    target = BoxTargets(torch.cat([box(1.0, 9.0), box(-4.0, -12.0)]), torch.tensor([0, 2]))
    level = features()
    one = make().loss([level], cameras, IMAGE, [target])
    two = head.loss([level, level], cameras, IMAGE, [target])
    batch = head.loss([level.repeat(2, 1, 1, 1, 1)] * 2, cameras.repeat(2, 1, 1, 1), IMAGE, [target, target])
    for key, value in one.items():
        assert_close(two[key], value)
        assert_close(batch[key], value)


def test_without_boxes_the_background_alone_counts():
    empty = BoxTargets(torch.zeros(0, 9), torch.zeros(0, dtype=torch.int64))
    losses = make().loss([features()], ring_of_cameras()[None], IMAGE, [empty])
    assert list(losses) == ["cls.loss_perspective"]
    assert losses["cls.loss_perspective"] > 0


def test_model_adds_the_losses_and_predicts_without_them():
    model = small_model(perspective_head={"type": PerspectiveHead, "embed_dims": 16})
    losses = model(**make_batch(model, [make_item(0), make_item(1)]), mode="loss")
    assert {"cls.loss_perspective", "box.loss_perspective"} <= set(losses)
    tasks, _ = model.parse_losses(losses)
    tasks["cls"].backward()
    assert model.perspective_head.levels[0].weight.grad.abs().sum() > 0
    assert "perspective" not in str(model.eval()(make_batch(model, [make_item(0)])["inputs"]).keys())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"box": None, "perspective_head": {"type": PerspectiveHead, "embed_dims": 16}},
            "belongs to the tasks",
        ),
        (
            {"perspective_head": {"type": PerspectiveHead, "embed_dims": 8}},
            r"1 feature level\(s\) with 8 channels",
        ),
        (
            {"perspective_head": {"type": PerspectiveHead, "embed_dims": 16, "num_levels": 2}},
            "expects 2 feature",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small_model(**changes)

"""The auxiliary heatmap: centres in the right cells, a loss that training can lower, and a model that uses it."""

import math

import pytest
import torch

from perception.models import CenterHeatmap
from perception.models.box_head import BoxTargets
from tests.models.small import GRID, make_batch, make_item, small_model

PC_RANGE = (-8.0, -16.0, -5.0, 8.0, 16.0, 3.0)


def make(**kwargs):
    return CenterHeatmap(pc_range=PC_RANGE, bev_h=16, bev_w=8, embed_dims=4, num_classes=3, **kwargs)


def boxes(*centres):
    result = torch.zeros(len(centres), 9)
    result[:, :2] = torch.tensor(centres)
    return result


def test_the_cell_of_a_centre_is_one_and_the_rest_falls_off():
    heat = make(sigma=0.5).heatmap(boxes((-7.0, 15.0)), torch.tensor([2]))
    assert heat.shape == (16, 8, 3)
    assert heat[15, 0, 2] == 1  # x from −8 by 2 m: column 0; y from −16 by 2 m: row 15
    assert float(heat[14, 0, 2]) == pytest.approx(math.exp(-1 / (2 * 0.25)))
    assert heat[..., :2].eq(0).all()


def test_an_off_centre_box_still_owns_its_cell():
    heat = make().heatmap(boxes((1.9, 0.1)), torch.tensor([0]))
    assert heat[8, 4, 0] == 1
    assert heat[8, 5, 0] > heat[8, 3, 0]


def test_centres_beyond_the_grid_are_left_out():
    heat = make().heatmap(boxes((8.0, 0.0), (0.0, -16.1)), torch.tensor([0, 1]))
    assert heat.eq(0).all()


def test_two_centres_keep_the_larger_value():
    module = make()
    both = module.heatmap(boxes((1.0, 1.0), (3.0, 1.0)), torch.tensor([1, 1]))
    single = [module.heatmap(boxes(centre), torch.tensor([1])) for centre in ((1.0, 1.0), (3.0, 1.0))]
    torch.testing.assert_close(both, torch.maximum(*single))


def test_loss_is_per_box_and_falls_with_the_right_answer():
    module = make()
    target = BoxTargets(boxes((1.0, 1.0), (-3.0, 5.0)), torch.tensor([0, 2]))
    bev = torch.randn(2, 128, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    one = module.loss(bev[:1], [target])["cls.loss_heatmap"]
    twice = module.loss(bev[:1].expand(2, -1, -1), [target, target])["cls.loss_heatmap"]
    torch.testing.assert_close(one, twice)

    weight = torch.zeros(3, 4)
    weight[0, 0] = weight[1, 1] = weight[2, 2] = 1.0
    module.classify.weight.data.copy_(weight)
    module.classify.bias.data.zero_()
    right = torch.full((1, 128, 4), -8.0)
    right[0, :, :3] = torch.where(module.heatmap(target.boxes, target.labels).flatten(0, 1) > 0.9, 8.0, -8.0)
    assert module.loss(right, [target])["cls.loss_heatmap"] < 0.02 * one


def test_no_boxes_give_a_finite_loss():
    empty = BoxTargets(torch.zeros(0, 9), torch.zeros(0, dtype=torch.int64))
    assert make().loss(torch.zeros(1, 128, 4), [empty])["cls.loss_heatmap"].isfinite()


def test_model_adds_the_loss_to_cls_and_predicts_without_it():
    model = small_model(center_heatmap={"type": CenterHeatmap, **GRID})
    losses = model(**make_batch(model, [make_item(0)]), mode="loss")
    assert "cls.loss_heatmap" in losses
    tasks, _ = model.parse_losses(losses)
    tasks["cls"].backward()
    assert model.center_heatmap.classify.weight.grad.abs().sum() > 0


def test_it_needs_a_box_head_and_the_encoders_grid():
    with pytest.raises(ValueError, match="box_head"):
        small_model(box=None, center_heatmap={"type": CenterHeatmap, **GRID})
    with pytest.raises(ValueError, match="center_heatmap expects"):
        small_model(center_heatmap={"type": CenterHeatmap, **GRID, "bev_h": 6})

import pytest
import torch
from mmcv.ops import sigmoid_focal_loss
from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss
from torch.autograd import gradcheck


def make_inputs():
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(20, 5, generator=rng, dtype=torch.float64) * 3
    return logits, torch.arange(20) % 6  # class 5 of 5 is background


def test_matches_the_formula_of_mmdet():
    logits, target = make_inputs()
    one_hot = torch.nn.functional.one_hot(target, 6)[:, :5].double()
    expected = py_sigmoid_focal_loss(logits, one_hot, gamma=1.7, alpha=0.3, reduction="none")
    torch.testing.assert_close(sigmoid_focal_loss(logits, target, 1.7, 0.3, None, "none"), expected)
    torch.testing.assert_close(sigmoid_focal_loss(logits, target, 1.7, 0.3, None, "sum"), expected.sum())
    torch.testing.assert_close(
        sigmoid_focal_loss(logits, target, 1.7, 0.3, None, "mean"), expected.sum() / 20
    )


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_gradcheck(reduction):
    logits, target = make_inputs()
    logits.requires_grad_()
    assert gradcheck(lambda x: sigmoid_focal_loss(x, target, 2.0, 0.25, None, reduction), (logits,))


@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_large_logits_stay_finite(scale):
    logits, target = make_inputs()
    logits = (logits * scale).float().requires_grad_()
    sigmoid_focal_loss(logits, target, 2.0, 0.25, None, "sum").backward()
    assert logits.grad.isfinite().all()


def test_class_weights():
    logits, target = make_inputs()
    logits, target = logits[target < 5], target[target < 5]
    weight = torch.arange(1.0, 6.0, dtype=torch.float64)
    plain = sigmoid_focal_loss(logits, target, 2.0, 0.25, None, "none")
    torch.testing.assert_close(
        sigmoid_focal_loss(logits, target, 2.0, 0.25, weight, "none"), plain * weight[target][:, None]
    )


def test_class_weights_with_background_are_refused():
    logits, target = make_inputs()
    with pytest.raises(ValueError, match="below num_classes = 5, found 5"):
        sigmoid_focal_loss(logits, target, 2.0, 0.25, torch.ones(5, dtype=torch.float64), "none")

"""``sigmoid_focal_loss_forward`` and ``_backward`` of ``mmcv._ext``."""

import torch
import torch.nn.functional as F
from torch import Tensor


def _terms(logits: Tensor, target: Tensor, weight: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """The mask of positives (N, C), and alpha (there) or 1 - alpha, times the weight of each row's class."""
    num_classes = logits.shape[1]
    positive = target[:, None] == torch.arange(num_classes, device=target.device)
    scale = torch.where(positive, alpha, 1 - alpha).to(logits.dtype)
    if weight.numel():
        if bool((target >= num_classes).any()):
            raise ValueError(
                f"class weights need targets below num_classes = {num_classes}, found {int(target.max())} "
                "(background): leave the weights out"
            )
        scale = scale * weight[target][:, None]
    return positive, scale


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Writes the focal loss of each logit into output (N, C).

    Source: Lin et al., Focal Loss (2017), eq. 5.

    Args:
        input: (N, C) logits.
        target: (N,) class indices; C or more is background.
        weight: (C,) or empty.
        output: (N, C).
        gamma: how fast easy examples lose weight.
        alpha: weight of the positives, 1 - alpha that of the negatives.

    Raises:
        ValueError: weights are given and a target is background.
    """
    positive, scale = _terms(input, target, weight, alpha)
    signed = torch.where(positive, input, -input)  # the probability of the right answer is sigmoid(signed)
    output.copy_(-scale * torch.sigmoid(-signed) ** gamma * F.logsigmoid(signed))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Writes d output / d input, elementwise, into grad_input (N, C); arguments and errors as the forward."""
    positive, scale = _terms(input, target, weight, alpha)
    signed = torch.where(positive, input, -input)
    right, wrong = torch.sigmoid(signed), torch.sigmoid(-signed)
    grad = scale * wrong**gamma * (gamma * right * F.logsigmoid(signed) - wrong)
    grad_input.copy_(torch.where(positive, grad, -grad))

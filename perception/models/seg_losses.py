"""Losses of the BEV segmentation."""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = 255
"""Label of a pixel that does not count."""


def cross_entropy(logits: Tensor, target: Tensor, class_weights: Tensor) -> Tensor:
    """Class-weighted cross-entropy, averaged over pixels.

    *Source*: mmseg's `CrossEntropyLoss` as Bin-ze uses it: the mean is over pixels, not over the sum of their weights.

    Args:
        logits: (B, K, rows, columns).
        target: (B, rows, columns), int64, 0..K−1 or 255 = ignored.
        class_weights: (K,).

    Returns:
        0-dim.
    """
    total = F.cross_entropy(logits, target, class_weights, ignore_index=IGNORE, reduction="sum")
    return total / (target != IGNORE).sum().clamp(min=1)


def dice_loss(logits: Tensor, target: Tensor, smooth: float = 1.0) -> Tensor:
    """1 − dice of the softmax probabilities over the whole batch, averaged over the classes but background.

    *Source*: Milletari et al., V-Net, with squares left out. Thin lines are few pixels; dice does not see the many
    background ones.

    Args:
        logits: (B, K, rows, columns), class 0 is the background.
        target: (B, rows, columns), int64, 0..K−1 or 255 = ignored.
        smooth: added to both sides of the fraction, pixels.

    Returns:
        0-dim, 0..1.
    """
    valid = target != IGNORE
    prob = logits.softmax(dim=1)[:, 1:] * valid[:, None]
    classes = torch.arange(1, logits.shape[1], device=target.device)[None, :, None, None]
    wanted = (target[:, None] == classes).to(prob.dtype)
    axes = (0, 2, 3)
    overlap = (prob * wanted).sum(axes)
    dice = (2 * overlap + smooth) / (prob.sum(axes) + wanted.sum(axes) + smooth)
    return 1 - dice.mean()

"""Losses of the segmentation heads."""

import torch
import torch.nn.functional as F
from torch import Tensor

from perception.structures.driving_2d import IGNORE_SEG as IGNORE


def cross_entropy(logits: Tensor, target: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Cross-entropy, averaged over pixels.

    *Source*: mmseg's `CrossEntropyLoss` as Bin-ze uses it: the mean is over pixels, not over the sum of their weights.

    Args:
        logits: (B, K, rows, columns).
        target: (B, rows, columns), int64, 0..K−1 or 255 = ignored.
        class_weights: (K,); None: all 1.

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


def image_dice_loss(logits: Tensor, target: Tensor, smooth: float = 1.0) -> tuple[Tensor, Tensor]:
    """1 − dice of the softmax probabilities, per image and class, averaged over the classes that each image shows.

    *Source*: as `dice_loss`, in another average. Every class counts, none is background. A class that an image does not
    show would add a constant near 1 (any probability is too much), in a street scene for most of 19 classes; here
    cross-entropy alone punishes it. And an average over pairs of image and class is one that images of several batches
    or ranks join exactly, as that over a whole batch's pixels is not.

    Args:
        logits: (B, K, rows, columns).
        target: (B, rows, columns), int64, 0..K−1 or 255 = ignored.
        smooth: added to both sides of the fraction, pixels.

    Returns:
        The loss, 0..1, and the number of pairs that it averages, 0-dim both; the loss is 0 without a pair.

    Example:
        >>> logits = torch.tensor([[9.0, -9.0], [-9.0, 9.0], [-9.0, -9.0]])[None, :, None]
        >>> loss, pairs = image_dice_loss(logits, torch.tensor([[[0, 1]]]))
        >>> round(float(loss), 4), int(pairs)
        (0.0, 2)
    """
    valid = target != IGNORE
    prob = logits.softmax(dim=1) * valid[:, None]
    classes = torch.arange(logits.shape[1], device=target.device)[None, :, None, None]
    wanted = target[:, None] == classes  # (B, K, rows, columns)
    size = wanted.sum((2, 3)).to(prob.dtype)
    overlap = (prob * wanted).sum((2, 3))
    dice = (2 * overlap + smooth) / (prob.sum((2, 3)) + size + smooth)  # (B, K)
    is_shown = size > 0
    pairs = is_shown.sum()
    return ((1 - dice) * is_shown).sum() / pairs.clamp(min=1), pairs

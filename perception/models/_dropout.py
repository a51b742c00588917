"""Dropout whose random numbers do not dominate a training step on a CPU."""

import torch
from torch import Tensor, nn

_LEVELS = 1 << 16  # of the 16-bit numbers that decide


class Dropout(nn.Dropout):
    """`nn.Dropout`, with a mask that costs a quarter on a CPU.

    torch draws one number per element there, one after the other; this draws 64 bits for four elements. The
    probability is therefore rounded to multiples of 2⁻¹⁶, and what is kept is scaled by the inverse of its share,
    rounded to the dtype (bfloat16: within 0.4 %). Elsewhere and in compiled graphs it is torch's own. The numbers
    come from torch's global generator in any case.

    Example:
        >>> Dropout(0.1).eval()(torch.ones(2))
        tensor([1., 1.])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        if not (self.training and draws_cheaply(x, self.p)):
            dropped: Tensor = super().forward(x)
            return dropped
        return x * keep_mask(x, self.p).mul_(1 / keep_share(self.p))


def draws_cheaply(x: Tensor, p: float) -> bool:
    """Whether `keep_mask` is for this tensor and probability."""
    return x.is_cpu and 0 < keep_share(p) < 1 and not torch.compiler.is_compiling()


def keep_share(p: float) -> float:
    """1 − p, as rounded: the share of elements that `keep_mask` keeps.

    Example:
        >>> keep_share(0.5)
        0.5
    """
    return 1 - round(p * _LEVELS) / _LEVELS


def keep_mask(like: Tensor, p: float) -> Tensor:
    """1 with probability `keep_share(p)`, else 0; shape and dtype of `like`, which is on a CPU.

    Args:
        like: any shape.
        p: probability of 0.

    Example:
        >>> sorted(keep_mask(torch.empty(999), 0.5).unique().tolist())
        [0.0, 1.0]
    """
    words = torch.empty((like.numel() + 3) // 4, dtype=torch.int64).random_(-(1 << 63), None)
    keep = torch.empty(4 * len(words), dtype=like.dtype)
    torch.ge(words.view(torch.int16), round(p * _LEVELS) - _LEVELS // 2, out=keep)
    return keep[: like.numel()].view(like.shape)

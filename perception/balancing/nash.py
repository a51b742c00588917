"""Nash-MTL by Newton's method."""

import torch
from torch import Tensor

from perception.balancing._checks import check_range
from perception.balancing.gram_weighting import GramWeighting, cosines

_RIDGE = 1e-12
_MAX_ITERS = 200
_TOLERANCE = 1e-12


class NashWeighting(GramWeighting):
    """The tasks' Nash bargaining solution: G a = 1/a.

    *Source*: Navon et al. 2022, Claim 3.1. a is the only minimiser of 1/2 a G a - sum log a, found by damped Newton on
    the cosine matrix (a = b / norm) with 1e-12 on its diagonal, without which there is none when tasks oppose each
    other exactly. TorchJD's `NashMTL` and the official code end in ones without a word on ordinary inputs; this equals
    `FairGrad` with alpha 1. |G a * a - 1| stays below 1e-8 at full rank. A task whose gradient is 0 gets 0. The update
    has norm sqrt(T) before the limit, whatever the gradients' scale. Convention "sum".

    Args:
        max_norm: largest norm of the update, as in the official code; None does not limit.

    Raises:
        ValueError: `max_norm` is not above 0.

    Example:
        >>> NashWeighting(max_norm=None)(torch.diag(torch.tensor([4.0, 1.0])))
        tensor([0.5000, 1.0000])
    """

    def __init__(self, *, max_norm: float | None = 1.0) -> None:
        super().__init__()
        if max_norm is not None:
            check_range("max_norm", max_norm, 0.0, is_open=True)
        self.max_norm = max_norm

    def _solve(self, gram: Tensor, task_idx: Tensor) -> Tensor:
        norms = gram.diagonal().clamp(min=0).sqrt()
        moving = (norms > 0).nonzero().flatten()
        out = torch.zeros_like(norms)
        if len(moving):
            balanced = bargain(cosines(gram[moving][:, moving])) / norms[moving]
            out[moving] = balanced
        update_norm = float((out @ gram @ out).clamp(min=0).sqrt())
        if self.max_norm is not None and update_norm > self.max_norm:
            out = out * (self.max_norm / update_norm)
        return out


def bargain(gram: Tensor) -> Tensor:
    """The b > 0 with G b = 1/b, for a float64 positive semi-definite (T, T) with diagonal 1; returns (T,)."""
    gram = gram + _RIDGE * torch.eye(len(gram), dtype=gram.dtype)
    b = torch.ones_like(gram[0])
    for _ in range(_MAX_ITERS):
        gradient = gram @ b - 1 / b
        step = torch.linalg.solve(gram + torch.diag(b**-2), gradient)
        # The objective is self-concordant: a step of length 1 / (1 + decrement) stays inside and always falls.
        decrement = float((gradient @ step).clamp(min=0).sqrt())
        if decrement < _TOLERANCE:
            break
        b = b - step / (1 + decrement if decrement > 0.25 else 1)
    return b

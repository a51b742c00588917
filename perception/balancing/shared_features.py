"""Where the trunk ends and the heads begin: a cut in the graph that a model offers and an optimiser wrapper may use."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class SharedFeatures:
    """Passes features through; while `cut`, gives leaves instead, so that heads and trunk are differentiated apart.

    A model calls it once per forward on everything that its heads read. Then the task gradients with respect to the
    leaves are those of the shared features, at the price of the heads' backward alone, and one backward of the roots
    takes their combination through the trunk.

    *Source*: the upper bound of Sener & Koltun 2018, §3.3 (MGDA-UB): conflicts are measured on features, not on
    parameters, which is another statistic.

    Attributes:
        leaves: what the heads read in the last forward under `cut`.
        roots: what the trunk made in it.

    Example:
        >>> shared, w = SharedFeatures(), torch.nn.Parameter(torch.tensor(3.0))
        >>> with shared.cut():
        ...     (feature,) = shared(2 * w)
        >>> (feature**2).backward()
        >>> float(shared.leaves[0].grad), w.grad
        (12.0, None)
    """

    def __init__(self) -> None:
        self.leaves: list[Tensor] = []
        self.roots: list[Tensor] = []
        self._is_cut = False

    @contextmanager
    def cut(self) -> Iterator[None]:
        """Cut the graph in the forwards inside."""
        self._is_cut = True
        try:
            yield
        finally:
            self._is_cut = False

    def __call__(self, *features: Tensor) -> tuple[Tensor, ...]:
        """The features, or leaves with the same values."""
        if not self._is_cut or not torch.is_grad_enabled():
            return features
        self.roots = list(features)
        self.leaves = [feature.detach().requires_grad_() for feature in features]
        return tuple(self.leaves)

    def clear(self) -> None:
        """Forget the last forward."""
        self.roots, self.leaves = [], []

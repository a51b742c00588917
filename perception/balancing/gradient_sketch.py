"""Task gradients squeezed to k numbers each, whose inner products are nearly those of the gradients.

Legend: T tasks, P columns, k numbers per sketch.
"""

import torch
from torch import Tensor

_CHUNK = 1 << 20  # columns at once


class GradientSketch:
    r"""A random linear map from P to k numbers: Charikar, Chen & Farach-Colton's count sketch (2002), block by block.

    Column i of block b (of k columns each) goes to number (i + o_b) mod k, with a random offset o_b and a random sign.
    Two columns of one block never meet, two of different blocks with probability 1 / k, so for gradients x and y

    .. math:: E\langle Sx, Sy \rangle = \langle x, y \rangle, \qquad
        Var\langle Sx, Sy \rangle \le (\|x\|^2 \|y\|^2 + \langle x, y \rangle^2) / k :

    a cosine c is off by a standard deviation of at most sqrt((1 + c²) / k). The map is linear, so the sum of the ranks'
    sketches is the sketch of the ranks' sum. It adds in a fixed order: equal inputs give equal bits.

    Args:
        size: k.
        seed: of signs and offsets, the same on all ranks. The map stays the same from update to update.

    Raises:
        ValueError: `size` is below 1.

    Example:
        >>> x = torch.randn(2, 5000)
        >>> S = GradientSketch(size=1024, seed=0)
        >>> bool((S(x) @ S(x).T / (x @ x.T).diagonal() - 1).diagonal().abs().max() < 0.2)
        True
    """

    def __init__(self, *, size: int, seed: int) -> None:
        if size < 1:
            raise ValueError(f"a sketch needs a size of 1 or more numbers per task, got {size}")
        self.size = size
        self.seed = seed

    def __call__(self, rows: Tensor, chosen: Tensor | None = None) -> Tensor:
        """Sketch rows.

        Args:
            rows: (T, P).
            chosen: (P,) bool, columns that count; None: all.

        Returns:
            (T, k) float64.
        """
        generator = torch.Generator(rows.device).manual_seed(self.seed)
        blocks = max(1, _CHUNK // self.size)  # at once
        places = torch.arange(self.size, device=rows.device)
        total = torch.zeros(len(rows), self.size, dtype=torch.float64, device=rows.device)
        for start in range(0, rows.shape[1], blocks * self.size):
            piece = rows[:, start : start + blocks * self.size]
            width = piece.shape[1]
            count = -(-width // self.size)
            # Drawn for whole chunks, so that a column's sign does not depend on how many follow it.
            signs = torch.randint(
                2, (blocks * self.size,), generator=generator, device=rows.device, dtype=torch.int8
            )
            offsets = torch.randint(self.size, (blocks, 1), generator=generator, device=rows.device)
            factors = (2 * signs[:width] - 1).to(rows.dtype)
            if chosen is not None:
                factors *= chosen[start : start + width]
            signed = torch.nn.functional.pad(piece * factors, (0, count * self.size - width))
            signed = signed.unflatten(1, (count, self.size))  # (T, blocks, k)
            source = (places - offsets[:count]) % self.size  # (blocks, k)
            total += signed.gather(2, source.expand_as(signed)).double().sum(dim=1)
        return total

"""Real images without a download: scikit-learn's handwritten digits, two on one canvas.

Legend: N pairs, canvas 12 × 12 pixels.
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Split = Literal["train", "val", "test"]

CANVAS = 12
_DIGIT = 8
_SHIFT = CANVAS - _DIGIT
_BRIGHTEST = 16.0
_SEED = 0
# Of 1,797 images. A digit is in one split only, so a pair of the test split shows two unseen images.
_SPLITS: dict[Split, slice] = {"train": slice(0, 1100), "val": slice(1100, 1400), "test": slice(1400, 1797)}


@dataclass(frozen=True, kw_only=True)
class DigitPairs:
    """Overlaid digits.

    Attributes:
        images: (N, 1, 12, 12), 0 to 1, the brighter of the two digits at each pixel.
        left: (N,) int64, 0 to 9, the digit in the upper left.
        right: (N,) int64, 0 to 9, the digit in the lower right.
    """

    images: Tensor
    left: Tensor
    right: Tensor

    def __len__(self) -> int:
        return len(self.images)


@cache  # a benchmark's runs share the pairs
def load_digit_pairs(split: Split, num_pairs: int) -> DigitPairs:
    """Draw pairs of digits, the same ones at each call.

    *Source*: MultiMNIST (Sabour et al. 2017; for multi-task learning Sener and Koltun 2018), made of the 8 × 8 digits
    that scikit-learn carries (UCI, Alpaydin and Kaynak 1998): one in the upper left and one in the lower right corner,
    4 × 4 pixels of them overlapping.

    Args:
        split: "train", "val" or "test", disjoint in their images.
        num_pairs: N.

    Raises:
        ImportError: scikit-learn is not installed.

    Example:
        >>> pairs = load_digit_pairs("test", 5)
        >>> pairs.images.shape, len(pairs.left)
        (torch.Size([5, 1, 12, 12]), 5)
    """
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError("the digits benchmark needs scikit-learn: pip install -e .[dev]") from error
    digits = load_digits()
    order = np.random.default_rng(_SEED).permutation(len(digits.target))[_SPLITS[split]]
    rng = np.random.default_rng([_SEED, list(_SPLITS).index(split)])
    first, second = (order[rng.integers(len(order), size=num_pairs)] for _ in range(2))
    canvas = np.zeros((2, num_pairs, CANVAS, CANVAS), dtype=np.float32)
    canvas[0, :, :_DIGIT, :_DIGIT] = digits.images[first] / _BRIGHTEST
    canvas[1, :, _SHIFT:, _SHIFT:] = digits.images[second] / _BRIGHTEST
    return DigitPairs(
        images=torch.from_numpy(canvas.max(axis=0)[:, None]),
        left=torch.from_numpy(digits.target[first]).long(),
        right=torch.from_numpy(digits.target[second]).long(),
    )

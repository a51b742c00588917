"""What a pipeline does to decoded images, as a module: resizing, cutting, normalising, padding.

Legend: M images, (H, W) as given, (h, w) after resizing.
"""

import torch
from torch import Tensor, nn

from perception.models.data_preprocessor import NormalizingPreprocessor

_COEFFICIENT = 2048  # cv2's weights are whole numbers of 1 / 2048


class PrepareImages(nn.Module):
    """From images as decoded to the backbone's input.

    *Source*: cv2.resize with INTER_LINEAR on uint8: weights of 11 bits, products cut off at fixed places. Here in
    float32, which holds these numbers exactly but for the largest products; so the result is the same in every library
    and, but for one pixel in some 100,000, which is a level off, cv2's. "area" is the mean over what a pixel covers,
    for reductions.

    Args:
        preprocessor: the model's, for mean, standard deviation, order of channels and padding.
        size: (width, height) to resize to.
        interpolation: "bilinear" or "area".
        crop_top: rows cut off the top after resizing.

    Example:
        >>> prepare = PrepareImages(
        ...     NormalizingPreprocessor(pad_size_divisor=4), size=(6, 4), interpolation="bilinear", crop_top=1
        ... )
        >>> prepare(torch.zeros(2, 8, 12, 3, dtype=torch.uint8)).shape
        torch.Size([2, 3, 4, 8])
    """

    def __init__(
        self,
        preprocessor: NormalizingPreprocessor,
        *,
        size: tuple[int, int],
        interpolation: str,
        crop_top: int,
    ) -> None:
        super().__init__()
        self.preprocessor = preprocessor
        self.size = size
        self.interpolation = interpolation
        self.crop_top = crop_top

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) after resizing and cutting, before padding."""
        return self.size[1] - self.crop_top, self.size[0]

    def forward(self, images: Tensor) -> Tensor:
        """(M, H, W, 3) uint8 RGB → (M, 3, Hp, Wp), normalised and padded."""
        resize = resize_bilinear if self.interpolation == "bilinear" else resize_area
        resized = resize(images, self.size, self.crop_top)  # (M, 3, rows, columns)
        if not self.preprocessor.bgr_to_rgb:  # the network was trained on BGR
            resized = resized.flip(1)
        return self.preprocessor.normalize_ordered(resized)

    def scale(self, images: Tensor) -> Tensor:
        """(2,), factors along x and y from the pixels of (..., H, W, 3) to those after resizing."""
        return torch.stack(
            [_ratio(size, images.shape[axis]) for size, axis in zip(self.size, (-2, -3), strict=True)]
        )


def resize_bilinear(images: Tensor, size: tuple[int, int], crop_top: int = 0) -> Tensor:
    """(M, H, W, 3) uint8 → (M, 3, h − crop_top, w) float32 of whole numbers; `size` is (w, h)."""
    rows, columns = images.shape[1], images.shape[2]
    left, right, fraction = _neighbours(size[0], columns)
    # Beyond the border's pixels cv2 gives the weight to one of the two, which are the same; along y it does not.
    fraction = torch.where(left == right, 0.0, fraction)
    top, bottom, down = _neighbours(size[1], rows)
    before, behind = _weights(fraction)[:, :, None, None, None] / 16  # (w, 1, 1, 1) each
    over = []
    for index, weight in zip((top, bottom), _weights(down), strict=True):
        # With columns first, a column is one piece of memory: runtimes are slow at picking pixel by pixel, and at
        # numbers that hold for three neighbours each.
        line = images.index_select(1, index[crop_top:]).permute(2, 0, 3, 1)  # (W, M, 3, rows)
        before_px, behind_px = (line.index_select(0, place).float() for place in (left, right))
        across = (before_px * before + behind_px * behind).floor()  # (w, M, 3, rows), at most 255 · 128
        over.append((across * (weight[crop_top:] / 65536)).floor())
    return ((over[0] + over[1]) * 0.25 + 0.5).floor().permute(1, 2, 3, 0)


def resize_area(images: Tensor, size: tuple[int, int], crop_top: int = 0) -> Tensor:
    """(M, H, W, 3) uint8 → (M, 3, h − crop_top, w) float32 of whole numbers: means over areas; `size` is (w, h)."""
    across, down = _coverage(size[0], images.shape[2]), _coverage(size[1], images.shape[1])[crop_top:]
    pixels = images.float().permute(0, 3, 1, 2)  # (M, 3, H, W)
    return ((down @ (pixels @ across.T)) + 0.5).floor()


def _ratio(numerator: int, denominator: int) -> Tensor:
    """A float32 scalar; one of the numbers may be an axis that a graph leaves open."""
    return (torch.tensor(float(numerator), dtype=torch.float64) / denominator).float()


def _neighbours(size: int, source: int) -> tuple[Tensor, Tensor, Tensor]:
    """For each of `size` pixels: the source's pixels before and behind its centre, and the distance from the former."""
    centres = (torch.arange(size, dtype=torch.float64) + 0.5) * source / size - 0.5
    position = centres.float()
    before = position.floor()
    fraction = position - before
    low = before.long()
    return low.clamp(min=0), (low + 1).minimum(_last(source)), fraction


def _last(source: int) -> Tensor:
    return torch.zeros((), dtype=torch.int64) + source - 1


def _weights(fraction: Tensor) -> Tensor:
    """(n,) → (2, n), of the pixels before and behind, in 1 / 2048."""
    return (torch.stack([1 - fraction, fraction]) * _COEFFICIENT).round()


def _coverage(size: int, source: int) -> Tensor:
    """(size, source), which share of each of `size` pixels each of the source's covers."""
    edges = torch.arange(size + 1, dtype=torch.float64) * source / size
    starts = torch.arange(source, dtype=torch.float64)
    overlap = edges[1:, None].minimum(starts + 1) - edges[:-1, None].maximum(starts)
    return (overlap.clamp(min=0) * size / source).float()

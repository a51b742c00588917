"""From a collated batch to the network's input tensors.

Legend: B batch, F frames (oldest first), N cameras.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseDataPreprocessor
from torch import Tensor

from perception.registry import MODELS

INPUT_KEYS = ("img", "lidar2img", "ego_motion", "has_prev")


class NormalizingPreprocessor(BaseDataPreprocessor):
    """Normalises images, then pads them with zero at the right and bottom.

    Args:
        mean: per channel, in the order after `bgr_to_rgb`.
        std: per channel, likewise.
        bgr_to_rgb: swap the channels first.
        pad_size_divisor: height and width become multiples of this.
        non_blocking: of the copy to the device.

    Raises:
        ValueError: `mean` or `std` has not three numbers.
    """

    def __init__(
        self,
        *,
        mean: Sequence[float] = (123.675, 116.28, 103.53),
        std: Sequence[float] = (58.395, 57.12, 57.375),
        bgr_to_rgb: bool = True,
        pad_size_divisor: int = 32,
        non_blocking: bool = False,
    ) -> None:
        super().__init__(non_blocking=non_blocking)
        if len(mean) != 3 or len(std) != 3:
            raise ValueError(f"mean and std must have 3 numbers each, got {list(mean)} and {list(std)}.")
        self.bgr_to_rgb = bgr_to_rgb
        self.pad_size_divisor = pad_size_divisor
        self.register_buffer("mean", torch.tensor(list(mean)).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).view(3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def normalize(self, images: Tensor) -> Tensor:
        """(..., 3, H, W), 0..255 → (..., 3, Hp, Wp), normalised and padded."""
        return self.normalize_ordered(images.flip(-3) if self.bgr_to_rgb else images)

    def normalize_ordered(self, images: Tensor) -> Tensor:
        """As `normalize`, for channels that have the order of `mean` already."""
        normalized = (images.to(self.mean.dtype) - self.mean) / self.std
        height, width = images.shape[-2:]
        divisor = self.pad_size_divisor
        return F.pad(normalized, (0, -width % divisor, 0, -height % divisor))


@MODELS.register_module()
class BEVDataPreprocessor(NormalizingPreprocessor):
    """Moves to the device, stacks, normalises and pads a batch of camera rigs; `lidar2img` stays as it is."""

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Stack the lists of a pseudo-collated batch.

        Args:
            data: {"inputs": {"img": B × (F, N, 3, H, W) uint8, "lidar2img": B × (F, N, 4, 4),
                "ego_motion": B × (F, 18), "has_prev": B × (F,) bool}, "data_samples": B data samples}.
            training: unused, part of MMEngine's interface.

        Returns:
            The same keys; "img" (B, F, N, 3, Hp, Wp) normalised, the others stacked to (B, F, ...).

        Raises:
            ValueError: a key is missing, or samples differ in shape.
        """
        moved = self.cast_data(data)
        inputs = {key: _stack(moved["inputs"], key) for key in INPUT_KEYS}
        inputs["img"] = self.normalize(inputs["img"])
        return {"inputs": inputs, "data_samples": moved.get("data_samples")}


def _stack(inputs: dict[str, Sequence[Tensor] | Tensor], key: str) -> Tensor:
    if key not in inputs:
        raise ValueError(f"the batch has no inputs[{key!r}]; it holds {sorted(inputs)}. See PackBEVInputs.")
    items = inputs[key]
    shapes = sorted({tuple(item.shape) for item in items})
    if len(shapes) != 1:
        raise ValueError(
            f"inputs[{key!r}] differs in shape within the batch: {shapes}. Samples of one batch need the same number "
            "of frames and cameras and the same image size."
        )
    return items if isinstance(items, Tensor) else torch.stack(list(items))

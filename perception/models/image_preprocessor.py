"""From a collated batch of single images to the network's input.

Legend: B batch, (H, W) an image, (Hp, Wp) the padded batch.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.structures import DetDataSample
from mmengine.structures import PixelData
from torch import Tensor

from perception.models.data_preprocessor import NormalizingPreprocessor
from perception.models.seg_losses import IGNORE
from perception.registry import MODELS

MASKS = ("gt_sem_seg", "pseudo_sem_seg")


@MODELS.register_module()
class ImageDataPreprocessor(NormalizingPreprocessor):
    """Moves to the device, normalises, and pads all images of a batch to one size.

    Images of one batch may differ in size. In training the masks of the data samples are padded with 255 (ignored) in
    copies of these; boxes stay where they are, as padding is at the right and bottom. Arguments are those of
    `NormalizingPreprocessor`.
    """

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Stack the lists of a pseudo-collated batch.

        Args:
            data: {"inputs": {"img": B × (3, H, W) uint8}, "data_samples": B data samples}.
            training: whether masks are padded.

        Returns:
            The same keys; "img" (B, 3, Hp, Wp).

        Raises:
            ValueError: there are no images, or one has not this form.
        """
        moved = self.cast_data(data)
        images = moved["inputs"].get("img", ())
        wrong = [tuple(image.shape) for image in images if image.dim() != 3 or len(image) != 3]
        if wrong or len(images) == 0:
            raise ValueError(
                f"inputs['img'] must be a list of images (3, H, W), got {wrong or sorted(moved['inputs'])}. See "
                "PackImageInputs."
            )
        height = max(image.shape[1] for image in images)
        width = max(image.shape[2] for image in images)
        normalized = [self.normalize(image) for image in images]
        size = self._padded(height), self._padded(width)
        samples = moved.get("data_samples")
        if training and samples is not None:
            samples = [_pad_masks(sample, size) for sample in samples]
        stacked = torch.stack([_pad(image, size, 0.0) for image in normalized])
        return {"inputs": {"img": stacked}, "data_samples": samples}

    def _padded(self, length: int) -> int:
        return length + -length % self.pad_size_divisor


def _pad_masks(sample: DetDataSample, size: Sequence[int]) -> DetDataSample:
    names = [name for name in MASKS if name in sample]
    if not names:
        return sample
    padded = sample.new()
    for name in names:
        setattr(padded, name, PixelData(sem_seg=_pad(getattr(sample, name).sem_seg, size, IGNORE)))
    return padded


def _pad(values: Tensor, size: Sequence[int], fill: float) -> Tensor:
    """(..., H, W) → (..., Hp, Wp), filled at the right and bottom."""
    height, width = values.shape[-2:]
    return F.pad(values, (0, size[1] - width, 0, size[0] - height), value=fill)

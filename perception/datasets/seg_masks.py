"""Masks of semantic segmentation on disk: 8-bit train ids."""

import io
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from perception.datasets._image_files import read_content
from perception.structures import BDD_SEG_CLASSES, IGNORE_SEG
from perception.utils import DataError

_NUM_IDS = len(BDD_SEG_CLASSES)


def read_mask(
    path: str | Path, *, size: tuple[int, int] | None = None, frame: str | None = None
) -> np.ndarray:
    """Read a mask as the official toolkit does, and check it.

    Args:
        path: PNG file, 8 bits per pixel; a palette's colours mean nothing.
        size: (width, height) of the image that it belongs to; None believes the file.
        frame: the image's name, for error messages.

    Returns:
        (H, W) uint8: 0…18 and 255.

    Raises:
        DataError: the file is missing, damaged, not of this form or size, or has other ids.
    """

    def defect(what: str) -> DataError:
        return DataError(what, sample_token=frame, path=path)

    content = read_content(path, sample_token=frame, what="mask")
    # OpenCV decodes faster than Pillow, but makes colours of a palette's ids.
    mask = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED) if content else None
    if mask is None:
        raise defect(
            f"the mask of {len(content)} bytes cannot be decoded: it is no PNG, or cut short; unpack it again."
        )
    if mask.ndim != 2 or mask.dtype != np.uint8:
        mask = _read_palette(content)
    if mask is None:
        raise defect(
            "a mask has one channel of 8 bits, this one has others; take labels/sem_seg/masks, not the colormaps."
        )
    found = mask.shape[::-1]
    if size is not None and found != tuple(size):
        raise defect(
            f"the mask is {found[0]}×{found[1]}, its image {size[0]}×{size[1]}; they must be equal, so restore the "
            "original files."
        )
    # One pass: 255 wraps around to 0, ids 0…18 to 1…19.
    if int((mask + np.uint8(1)).max(initial=0)) > _NUM_IDS:
        wrong = sorted(set(np.unique(mask).tolist()) - {*range(_NUM_IDS), IGNORE_SEG})
        count = int(np.isin(mask, wrong).sum())
        shown = ", ".join(map(str, wrong[:5])) + (", …" if len(wrong) > 5 else "")
        raise defect(
            f"{count} pixels of the mask have the ids {shown}; allowed are 0 to {_NUM_IDS - 1} and {IGNORE_SEG} "
            "(ignored). Train ids are wanted, not label ids."
        )
    return mask


def _read_palette(content: bytes) -> np.ndarray | None:
    """Ids of an image with a palette, which the toolkit reads too; None where there is no palette."""
    with Image.open(io.BytesIO(content)) as image:
        return np.array(image) if image.mode == "P" else None

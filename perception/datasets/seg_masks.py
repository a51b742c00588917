"""Masks of semantic segmentation on disk: 8-bit train ids."""

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from perception.structures import BDD_SEG_CLASSES, IGNORE_SEG
from perception.utils import DataError

_NUM_IDS = len(BDD_SEG_CLASSES)
_MODES = {"L": "8-bit grey", "P": "8-bit with a palette"}


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

    try:
        with Image.open(path) as image:
            mode, found = image.mode, image.size
            mask = np.array(image) if mode in _MODES else None
    except FileNotFoundError as error:
        raise defect("the mask is missing; unpack the archive that holds it.") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise defect(f"the mask cannot be decoded ({error}); unpack it again.") from error
    if mask is None:
        raise defect(
            f"a mask has one channel of 8 bits, this one has the mode {mode!r}; take labels/sem_seg/masks, not the "
            "colormaps."
        )
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

"""Random mirroring and cutting of one image together with its boxes and masks."""

from typing import Any

import numpy as np

from perception.datasets.transforms._base import Transform
from perception.datasets.transforms._labels_2d import MASK_KEYS, move_labels
from perception.registry import TRANSFORMS


@TRANSFORMS.register_module()
class RandomFlipImage(Transform):
    """Mirror left and right with some probability; `flip` says whether.

    Args:
        prob: the probability.

    Raises:
        ValueError: the probability is outside 0…1.
    """

    def __init__(self, *, prob: float = 0.5) -> None:
        if not 0 <= prob <= 1:
            raise ValueError(f"prob must lie in 0…1, got {prob}.")
        self._prob = prob

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Flip, or not."""
        return flip_sample(results) if results["rng"].random() < self._prob else results


def flip_sample(results: dict[str, Any]) -> dict[str, Any]:
    """The sample in a mirror; done twice, the sample itself."""
    width = results["img"].shape[1]

    def flip_boxes(boxes: np.ndarray) -> np.ndarray:
        flipped = boxes.copy()
        flipped[:, 0], flipped[:, 2] = width - boxes[:, 2], width - boxes[:, 0]
        return flipped

    moved = move_labels(results, boxes=flip_boxes, masks=_mirrored)
    return {**results, **moved, "img": _mirrored(results["img"]), "flip": not results["flip"]}


def _mirrored(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels[:, ::-1])


@TRANSFORMS.register_module()
class CropImage(Transform):
    """Cut out a window at a random place; a smaller image is left whole along that axis. For training only.

    Boxes move along and may then reach outside: `PackImageInputs` clips them and leaves out what is too small.

    Args:
        size: (width, height) of the window.

    Raises:
        ValueError: the size is not positive, or a mask has another size than the image (put `ResizeImage` before).
    """

    def __init__(self, *, size: tuple[int, int]) -> None:
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"size is (width, height) with positive numbers, got {size}.")
        self._size = (int(size[0]), int(size[1]))

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Cut."""
        height, width = results["img"].shape[:2]
        for key in MASK_KEYS:
            if key in results and results[key].shape != (height, width):
                raise ValueError(
                    f"{key} is {results[key].shape[1]}×{results[key].shape[0]} and the image {width}×{height}; "
                    "put ResizeImage before CropImage."
                )
        new_width, new_height = min(self._size[0], width), min(self._size[1], height)
        # Always two draws, so that what comes after does not depend on the image's size.
        places = results["rng"].random(2)
        left, top = (
            int(place * (free + 1))
            for place, free in zip(places, (width - new_width, height - new_height), strict=True)
        )
        offset = np.array([left, top, left, top])

        def cut(pixels: np.ndarray) -> np.ndarray:
            return np.ascontiguousarray(pixels[top : top + new_height, left : left + new_width])

        moved = move_labels(results, boxes=lambda boxes: (boxes - offset).astype(boxes.dtype), masks=cut)
        return {**results, **moved, "img": cut(results["img"])}

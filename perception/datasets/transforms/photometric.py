"""Random brightness, contrast, saturation and hue."""

from typing import Any

import cv2
import numpy as np

from perception.datasets.transforms._base import Transform
from perception.registry import TRANSFORMS

_HALF_TURN = 180  # OpenCV stores the hue of 8-bit images in steps of two degrees


@TRANSFORMS.register_module()
class PhotometricDistortion(Transform):
    """Distort each image by its own random amounts: a single `img`, or those of all frames and cameras.

    *Source*: SSD's photometric distortion as BEVFormer trains with it. Deviations: computed on 8 bits by look-up tables
    (six times faster; each step rounds), each change is applied with its own probability of `prob`, and the random
    swap of colour channels is left out (road users and signs are told apart by colour).

    Args:
        brightness: largest shift, of 255.
        contrast: (lowest, highest) factor.
        saturation: (lowest, highest) factor.
        hue: largest turn, degrees.
        prob: probability of each of the four changes.

    Raises:
        ValueError: a range is negative or upside down.
    """

    def __init__(
        self,
        *,
        brightness: float = 32.0,
        contrast: tuple[float, float] = (0.5, 1.5),
        saturation: tuple[float, float] = (0.5, 1.5),
        hue: float = 18.0,
        prob: float = 0.5,
    ) -> None:
        for name, (low, high) in (("contrast", contrast), ("saturation", saturation)):
            if not 0 <= low <= high:
                raise ValueError(f"{name} must be (low, high) with 0 <= low <= high, got {(low, high)}.")
        if brightness < 0 or hue < 0 or not 0 <= prob <= 1:
            raise ValueError(
                f"brightness and hue must not be negative and prob must lie in 0…1, got {brightness}, {hue}, {prob}."
            )
        self._brightness = brightness
        self._contrast = contrast
        self._saturation = saturation
        self._hue = hue
        self._prob = prob

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Distort."""
        rng = results["rng"]
        if "frames" not in results:
            return {**results, "img": self._distort(results["img"], rng)}
        frames = [
            {**frame, "img": [self._distort(image, rng) for image in frame["img"]]}
            for frame in results["frames"]
        ]
        return {**results, "frames": frames}

    def _distort(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        # Always eight draws, so that one image's outcome never depends on another's.
        is_used = rng.random(4) < self._prob
        shift = rng.uniform(-self._brightness, self._brightness) if is_used[0] else rng.random() * 0
        contrast = rng.uniform(*self._contrast) if is_used[1] else 1 + rng.random() * 0
        saturation = rng.uniform(*self._saturation) if is_used[2] else 1 + rng.random() * 0
        turn = rng.uniform(-self._hue, self._hue) if is_used[3] else rng.random() * 0
        levels = np.arange(256.0)
        if is_used[0] or is_used[1]:
            table = np.clip((levels + shift) * contrast, 0, 255).round().astype(np.uint8)
            image = cv2.LUT(image, table)
        if is_used[2] or is_used[3]:
            hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
            tables = np.stack(
                [
                    np.mod((levels + turn / 2).round(), _HALF_TURN),
                    np.clip(levels * saturation, 0, 255).round(),
                    levels,
                ],
                axis=-1,
            )
            hsv = cv2.LUT(hsv, tables.astype(np.uint8)[:, None, :])
            image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
        return image

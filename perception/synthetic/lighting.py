"""Four times of day: sun direction, light, sky and haze."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Lighting:
    """Light of one scene; colours are BGR, 0 to 255.

    Attributes:
        name: noon, overcast, dusk or night.
        sun: (3,) unit vector towards the sun, global frame.
        ambient: (3,) factor per BGR channel on all surfaces.
        diffuse: (3,) factor per BGR channel times the cosine of the angle to the sun.
        sky_low: (3,) sky at the horizon, also the colour of the haze.
        sky_high: (3,) sky at the zenith.
        haze_distance: distance at which haze has taken 63 % of the contrast, metres.
        shadow: brightness factor of the ground below objects.
        noise: standard deviation of the image noise, grey levels.
    """

    name: str
    sun: NDArray[np.float32]
    ambient: NDArray[np.float32]
    diffuse: NDArray[np.float32]
    sky_low: NDArray[np.float32]
    sky_high: NDArray[np.float32]
    haze_distance: float
    shadow: float
    noise: float


_BASE: dict[
    str,
    tuple[float, tuple[float, ...], tuple[float, ...], tuple[int, ...], tuple[int, ...], float, float, float],
] = {
    # sun height (rad), ambient, diffuse, sky low, sky high, haze, shadow, noise
    "noon": (1.0, (0.62, 0.58, 0.55), (0.42, 0.46, 0.48), (235, 220, 205), (225, 165, 110), 260.0, 0.50, 2.0),
    "overcast": (
        1.2,
        (0.74, 0.73, 0.72),
        (0.15, 0.15, 0.15),
        (205, 203, 200),
        (180, 175, 170),
        150.0,
        0.65,
        2.5,
    ),
    "dusk": (0.35, (0.52, 0.47, 0.46), (0.22, 0.32, 0.45), (120, 160, 215), (130, 95, 75), 190.0, 0.60, 3.0),
    "night": (0.9, (0.56, 0.49, 0.46), (0.14, 0.12, 0.11), (68, 52, 46), (34, 24, 20), 190.0, 0.62, 4.0),
}

# One entry per scene of names.SCENE_NAMES: each kind occurs in mini_train, mini_val has overcast and dusk.
SCHEDULE: tuple[str, ...] = (
    "noon",
    "overcast",
    "night",
    "dusk",
    "overcast",
    "noon",
    "dusk",
    "noon",
    "night",
    "overcast",
)


def make_lighting(rng: np.random.Generator, name: str) -> Lighting:
    """Draw a lighting of the given kind; the sun's azimuth and the brightness vary by scene."""
    height, ambient, diffuse, low, high, haze, shadow, noise = _BASE[name]
    azimuth = rng.uniform(-np.pi, np.pi)
    height = height + rng.uniform(-0.12, 0.12)
    gain = rng.uniform(0.94, 1.06)
    sun = [np.cos(azimuth) * np.cos(height), np.sin(azimuth) * np.cos(height), np.sin(height)]

    def vector(v: tuple[float, ...] | list[float], k: float = 1.0) -> NDArray[np.float32]:
        return np.asarray(v, dtype=np.float32) * np.float32(k)

    return Lighting(
        name,
        vector(sun),
        vector(ambient, gain),
        vector(diffuse, gain),
        vector(low),
        vector(high),
        haze * rng.uniform(0.85, 1.15),
        shadow,
        noise,
    )

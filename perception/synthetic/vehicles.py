"""Meshes of vehicles. Every mesh fills its box (length x width x height) and stays inside it; +x is the front."""

from __future__ import annotations

import numpy as np

from perception.synthetic.mesh import Colour, Mesh, beam, box, cylinder, join, panel, side_panels

GLASS: Colour = (62.0, 50.0, 42.0)
TYRE: Colour = (28.0, 28.0, 28.0)
DARK: Colour = (45.0, 45.0, 48.0)
HEADLIGHT: Colour = (205.0, 245.0, 255.0)
TAIL_LIGHT: Colour = (25.0, 20.0, 225.0)

CAR_COLOURS: tuple[Colour, ...] = (
    (235, 235, 235),
    (190, 190, 188),
    (120, 118, 115),
    (50, 48, 48),
    (165, 70, 30),
    (35, 30, 165),
    (60, 95, 45),
    (140, 185, 205),
)
TRUCK_CABS: tuple[Colour, ...] = ((190, 90, 30), (35, 35, 180), (240, 240, 240), (60, 130, 60))
TRUCK_LOADS: tuple[Colour, ...] = ((225, 228, 230), (150, 190, 215), (185, 170, 155))
BUS_COLOURS: tuple[Colour, ...] = ((40, 40, 200), (190, 120, 20), (60, 150, 40), (60, 190, 220))
TRAILER_COLOURS: tuple[Colour, ...] = ((205, 208, 210), (175, 150, 120), (110, 140, 175))


def pick(rng: np.random.Generator, colours: tuple[Colour, ...]) -> Colour:
    """Choose a colour and vary it a little."""
    b, g, r = np.clip(np.asarray(colours[int(rng.integers(len(colours)))]) * rng.uniform(0.88, 1.08), 0, 250)
    return float(b), float(g), float(r)


def _wheels(xs: list[float], width: float, radius: float) -> list[Mesh]:
    half = 0.13
    return [
        cylinder((x, s * (width / 2 - half - 0.002), radius), radius, half, TYRE) for x in xs for s in (-1, 1)
    ]


def _lights(length: float, width: float, z0: float, z1: float, *, front: bool = True) -> list[Mesh]:
    x, y0, y1 = length / 2 - 0.004, width * 0.24, width * 0.47
    parts = []
    for s in (-1, 1):
        span = (min(s * y0, s * y1), max(s * y0, s * y1))
        if front:
            parts.append(panel(x, span, (z0, z1), HEADLIGHT, glow=0.9))
        parts.append(panel(-x, span, (z0, z1 + 0.1), TAIL_LIGHT, glow=0.8))
    return parts


def car(rng: np.random.Generator, length: float, w: float, h: float) -> Mesh:
    """A saloon, hatchback or estate."""
    paint = pick(rng, CAR_COLOURS)
    x, y = length / 2, w / 2
    back = rng.choice([-0.46, -0.40, -0.33]) * length
    parts = [
        box((-x + 0.01, x - 0.01), (-y, y), (0.16 * h, 0.56 * h), paint, sides=0.05 * w, front=0.05 * length),
        box(
            (back, 0.24 * length),
            (-0.45 * w, 0.45 * w),
            (0.55 * h, 0.95 * h),
            GLASS,
            rear=0.07 * length,
            front=0.13 * length,
            sides=0.10 * w,
        ),
        box(
            (back + 0.07 * length, 0.11 * length),
            (-0.355 * w, 0.355 * w),
            (0.93 * h, h),
            paint,
            sides=0.02 * w,
        ),
        panel(x - 0.008, (-0.22 * w, 0.22 * w), (0.2 * h, 0.36 * h), DARK),
    ]
    return join(
        parts + _wheels([-0.3 * length, 0.3 * length], w, 0.19 * h) + _lights(length, w, 0.33 * h, 0.45 * h)
    )


def truck(rng: np.random.Generator, length: float, w: float, h: float) -> Mesh:
    """A lorry: coloured cab in front, a taller load box behind."""
    cab, load = pick(rng, TRUCK_CABS), pick(rng, TRUCK_LOADS)
    x, y = length / 2, w / 2
    split = x - max(1.7, 0.26 * length)
    parts = [
        box((split, x - 0.01), (-0.47 * w, 0.47 * w), (0.16 * h, 0.82 * h), cab, front=0.03 * length),
        panel(x - 0.012 * length, (-0.4 * w, 0.4 * w), (0.5 * h, 0.74 * h), GLASS),
        side_panels((split + 0.35, x - 0.25), 0.472 * w, (0.5 * h, 0.74 * h), GLASS),
        box((-x + 0.01, split - 0.12), (-y, y), (0.3 * h, h), load),
        panel(-x + 0.006, (-0.02 * w, 0.02 * w), (0.32 * h, 0.97 * h), DARK),
        box((-x + 0.15, x - 0.3), (-0.3 * w, 0.3 * w), (0.16 * h, 0.3 * h), DARK),
    ]
    wheels = _wheels([-0.34 * length, -0.18 * length, 0.36 * length], w, 0.165 * h)
    return join(parts + wheels + _lights(length, w, 0.22 * h, 0.30 * h))


def bus(rng: np.random.Generator, length: float, w: float, h: float) -> Mesh:
    """A city bus: one long body with a dark window band and a white roof."""
    paint = pick(rng, BUS_COLOURS)
    x, y = length / 2, w / 2
    parts = [
        box((-x + 0.01, x - 0.01), (-y + 0.02, y - 0.02), (0.1 * h, 0.93 * h), paint),
        box((-x + 0.1, x - 0.1), (-0.46 * w, 0.46 * w), (0.93 * h, h), (225, 225, 225)),
        side_panels((-x + 0.5, x - 0.5), y, (0.46 * h, 0.78 * h), GLASS),
        panel(x - 0.005, (-0.45 * w, 0.45 * w), (0.4 * h, 0.8 * h), GLASS),
        panel(x - 0.004, (-0.3 * w, 0.3 * w), (0.83 * h, 0.91 * h), (60, 200, 250), glow=0.8),
        panel(-x + 0.005, (-0.38 * w, 0.38 * w), (0.55 * h, 0.78 * h), GLASS),
    ]
    for k in np.linspace(-x + 0.5, x - 0.5, max(4, int(length / 1.8)))[1:-1]:
        parts.append(side_panels((k - 0.07, k + 0.07), y - 0.002, (0.45 * h, 0.79 * h), paint))
    return join(
        parts + _wheels([-0.28 * length, 0.3 * length], w, 0.145 * h) + _lights(length, w, 0.16 * h, 0.24 * h)
    )


def trailer(rng: np.random.Generator, length: float, w: float, h: float) -> Mesh:
    """A semi-trailer: a high box with a stripe, wheels at the back, legs in front, no cab."""
    paint, stripe = pick(rng, TRAILER_COLOURS), pick(rng, TRUCK_CABS)
    x, y = length / 2, w / 2
    parts = [
        box((-x + 0.01, x), (-y + 0.01, y - 0.01), (0.32 * h, h), paint),
        side_panels((-x + 0.02, x - 0.02), y, (0.5 * h, 0.62 * h), stripe),
        panel(-x + 0.005, (-0.46 * w, 0.46 * w), (0.5 * h, 0.62 * h), stripe),
        box((-x + 0.1, x - 0.4), (-0.3 * w, 0.3 * w), (0.24 * h, 0.32 * h), DARK),
        box((0.32 * length, 0.34 * length), (-0.35 * w, -0.28 * w), (0.0, 0.3 * h), DARK),
        box((0.32 * length, 0.34 * length), (0.28 * w, 0.35 * w), (0.0, 0.3 * h), DARK),
    ]
    wheels = _wheels([-0.4 * length, -0.31 * length, -0.22 * length], w, 0.13 * h)
    return join(parts + wheels + _lights(length, w, 0.34 * h, 0.40 * h, front=False))


def construction_vehicle(rng: np.random.Generator, length: float, w: float, h: float) -> Mesh:
    """An excavator: tracks, yellow house with a glass cab, boom and bucket in front."""
    yellow: Colour = (20.0, float(rng.uniform(155, 185)), float(rng.uniform(215, 245)))
    x, y = length / 2, w / 2
    tracks = [
        box(
            (-x + 0.02, 0.18 * length),
            (s * 0.32 * w - 0.18 * w, s * 0.32 * w + 0.18 * w),
            (0.0, 0.26 * h),
            DARK,
            rear=0.05 * length,
            front=0.05 * length,
        )
        for s in (-1, 1)
    ]
    knee, wrist = (0.24 * length, 0.0, 0.97 * h - 0.12), (0.44 * length, 0.0, 0.45 * h)
    parts = [
        *tracks,
        box((-x + 0.01, 0.12 * length), (-y, y), (0.28 * h, 0.58 * h), yellow, sides=0.03 * w),
        box((-0.12 * length, 0.12 * length), (0.06 * w, 0.46 * w), (0.55 * h, h), yellow),
        panel(0.121 * length, (0.1 * w, 0.43 * w), (0.6 * h, 0.93 * h), GLASS),
        side_panels((-0.09 * length, 0.1 * length), 0.462 * w, (0.62 * h, 0.93 * h), GLASS),
        box(
            (-x + 0.05, -0.16 * length),
            (-0.45 * w, 0.45 * w),
            (0.56 * h, 0.72 * h),
            yellow,
            front=0.05 * length,
            rear=0.03 * length,
        ),
        beam((0.05 * length, 0.0, 0.5 * h), knee, 0.32, yellow),
        beam(knee, wrist, 0.26, yellow),
        box(
            (0.36 * length, x),
            (-0.22 * w, 0.22 * w),
            (0.12 * h, 0.45 * h),
            (50, 60, 70),
            front=0.05 * length,
            rear=0.06 * length,
        ),
    ]
    lights = [
        panel(-x + 0.004, (s * 0.36 * w - 0.1, s * 0.36 * w + 0.1), (0.4 * h, 0.48 * h), TAIL_LIGHT, glow=0.8)
        for s in (-1, 1)
    ]
    return join(parts + lights)


def tram(rng: np.random.Generator, length: float, w: float, h: float) -> Mesh:
    """A tram: a long low-floor body with sloped ends, a window band, dark joints and a pantograph."""
    paint, band = pick(rng, BUS_COLOURS), pick(rng, TRAILER_COLOURS)
    x, y, roof = length / 2, w / 2, 0.86 * h
    parts = [
        box(
            (-x + 0.01, x - 0.01),
            (-y + 0.02, y - 0.02),
            (0.05 * h, roof),
            paint,
            rear=0.5,
            front=0.5,
            sides=0.04,
        ),
        box((-x + 0.7, x - 0.7), (-0.42 * w, 0.42 * w), (roof, 0.93 * h), (175, 178, 180)),
        side_panels((-x + 0.4, x - 0.4), y - 0.01, (0.08 * h, 0.2 * h), band),
        side_panels((-x + 0.9, x - 0.9), y, (0.4 * h, 0.7 * h), GLASS),
        beam((0.0, 0.0, 0.93 * h), (0.7, 0.0, h), 0.07, DARK),
        beam((-0.6, 0.0, h - 0.04), (0.7, 0.0, h - 0.04), 0.07, DARK),
    ]
    for k in (-length / 6, length / 6):
        parts.append(side_panels((k - 0.25, k + 0.25), y + 0.004, (0.06 * h, roof), DARK))
    for s in (-1, 1):
        parts.append(panel(s * (x - 0.1), (-0.4 * w, 0.4 * w), (0.38 * h, 0.66 * h), GLASS))
        parts.append(
            panel(s * (x - 0.12), (-0.3 * w, 0.3 * w), (0.71 * h, 0.79 * h), (60, 200, 250), glow=0.8)
        )
    return join(parts + _lights(length, w, 0.17 * h, 0.24 * h))

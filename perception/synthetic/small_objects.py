"""Meshes of people, cycles, barriers and cones. Every mesh stays inside its box; +x is the front."""

from __future__ import annotations

import numpy as np

from perception.synthetic.mesh import Colour, Mesh, beam, box, cylinder, join
from perception.synthetic.vehicles import DARK, TYRE, pick

SHIRTS: tuple[Colour, ...] = (
    (200, 80, 40),
    (50, 50, 200),
    (70, 160, 60),
    (40, 190, 230),
    (225, 225, 225),
    (150, 60, 140),
    (50, 50, 55),
)
TROUSERS: tuple[Colour, ...] = ((90, 55, 40), (45, 45, 45), (110, 125, 135), (60, 75, 95))
SKIN: tuple[Colour, ...] = ((140, 170, 225), (90, 125, 180), (55, 75, 115))
MOTOR_COLOURS: tuple[Colour, ...] = ((40, 40, 185), (40, 40, 40), (170, 80, 25))
BICYCLE_COLOURS: tuple[Colour, ...] = ((170, 150, 30), (50, 170, 190), (190, 60, 150))


def pedestrian(rng: np.random.Generator, length: float, w: float, h: float, *, walking: bool) -> Mesh:
    """A person: two legs, torso, arms and head."""
    shirt, trousers, skin = pick(rng, SHIRTS), pick(rng, TROUSERS), pick(rng, SKIN)
    stride = 0.30 * length * rng.uniform(0.5, 1.0) if walking else 0.0
    parts = []
    for s in (-1, 1):
        parts.append(beam((s * stride, s * 0.13 * w, 0.0), (0.0, s * 0.13 * w, 0.48 * h), 0.22 * w, trousers))
        parts.append(
            beam((-s * stride * 0.8, s * 0.40 * w, 0.45 * h), (0.0, s * 0.34 * w, 0.80 * h), 0.14 * w, shirt)
        )
    parts += [
        box(
            (-0.28 * length, 0.28 * length),
            (-0.32 * w, 0.32 * w),
            (0.45 * h, 0.83 * h),
            shirt,
            sides=0.04 * w,
        ),
        box((-0.2 * length, 0.44 * length), (-0.25 * w, -0.02 * w), (0.0, 0.05 * h), DARK),
        box((-0.2 * length, 0.44 * length), (0.02 * w, 0.25 * w), (0.0, 0.05 * h), DARK),
        box((-0.15 * length, 0.17 * length), (-0.15 * w, 0.15 * w), (0.85 * h, h), skin, sides=0.02 * w),
        box((-0.17 * length, 0.02 * length), (-0.16 * w, 0.16 * w), (0.9 * h, h), (30, 35, 45)),
    ]
    mesh = join(parts)
    np.clip(mesh.vertices, [-length / 2, -w / 2, 0.0], [length / 2, w / 2, h], out=mesh.vertices)
    return mesh


def _rider(rng: np.random.Generator, seat: float, length: float, w: float, h: float) -> list[Mesh]:
    shirt, trousers = pick(rng, SHIRTS), pick(rng, TROUSERS)
    parts = [
        box(
            (-0.22 * length, 0.02 * length),
            (-0.34 * w, 0.34 * w),
            (seat, seat + 0.6 * (h - seat)),
            shirt,
            sides=0.05 * w,
        ),
        box(
            (-0.12 * length, 0.04 * length),
            (-0.17 * w, 0.17 * w),
            (seat + 0.66 * (h - seat), h),
            (60, 60, 210),
        ),
    ]
    for s in (-1, 1):
        shoulder = seat + 0.52 * (h - seat)
        parts.append(
            beam(
                (-0.05 * length, s * 0.33 * w, shoulder),
                (0.24 * length, s * 0.36 * w, seat + 0.12 * h),
                0.1,
                shirt,
            )
        )
        parts.append(
            beam((-0.12 * length, s * 0.22 * w, seat), (0.08 * length, s * 0.24 * w, 0.2 * h), 0.14, trousers)
        )
    return parts


def motorcycle(rng: np.random.Generator, length: float, w: float, h: float, *, rider: bool) -> list[Mesh]:
    """A motorcycle: thick wheels and a solid body; behind it, if there is one, its rider."""
    paint = pick(rng, MOTOR_COLOURS)
    r, seat = 0.15 * length, 0.78 if rider else 0.68 * h
    parts = [cylinder((s * (length / 2 - r), 0.0, r), r, 0.08, TYRE) for s in (-1, 1)] + [
        box(
            (-0.28 * length, 0.25 * length),
            (-0.17 * w, 0.17 * w),
            (0.55 * r + 0.1, seat - 0.04),
            paint,
            front=0.08 * length,
        ),
        box((-0.42 * length, 0.0), (-0.16 * w, 0.16 * w), (seat - 0.1, seat), DARK),
        beam((0.22 * length, -0.45 * w, seat + 0.2), (0.22 * length, 0.45 * w, seat + 0.2), 0.07, DARK),
        beam((0.2 * length, 0.0, seat + 0.2), (length / 2 - r, 0.0, r), 0.1, DARK),
        box(
            (0.25 * length, 0.33 * length),
            (-0.14 * w, 0.14 * w),
            (seat, seat + 0.16),
            (205, 245, 255),
            glow=0.9,
        ),
        box(
            (-0.46 * length, -0.42 * length),
            (-0.12 * w, 0.12 * w),
            (seat - 0.08, seat + 0.02),
            (25, 20, 225),
            glow=0.8,
        ),
    ]
    if rider:
        return [join(parts), join(_rider(rng, seat, length, w, h))]
    parts.append(beam((0.16 * length, 0.0, seat), (0.12 * length, 0.0, h), 0.05, DARK))
    return [join(parts)]


def bicycle(rng: np.random.Generator, length: float, w: float, h: float, *, rider: bool) -> list[Mesh]:
    """A bicycle: thin wheels and an open frame; behind it, if there is one, its rider."""
    paint = pick(rng, BICYCLE_COLOURS)
    r, seat = 0.195 * length, 0.85 if rider else 0.78 * h
    axle, fork = (-length / 2 + r, 0.0, r), (length / 2 - r, 0.0, r)
    crank, head, saddle = (-0.03 * length, 0.0, r), (0.2 * length, 0.0, seat), (-0.14 * length, 0.0, seat)
    parts = [cylinder(c, r, 0.035, TYRE, sides=10) for c in (axle, fork)]
    parts += [
        beam(a, b, 0.085, paint)
        for a, b in (
            (axle, saddle),
            (axle, crank),
            (crank, saddle),
            (crank, head),
            (saddle, head),
            (head, fork),
        )
    ]
    bar = min(seat + 0.12, h - 0.03)
    parts.append(beam((0.2 * length, -0.45 * w, bar), (0.2 * length, 0.45 * w, bar), 0.06, DARK))
    parts.append(box((-0.22 * length, -0.06 * length), (-0.1, 0.1), (seat, min(seat + 0.08, h)), DARK))
    if rider:
        return [join(parts), join(_rider(rng, seat, length, w, h))]
    parts.append(beam((0.2 * length, 0.0, seat), (0.18 * length, 0.0, h), 0.05, DARK))
    return [join(parts)]


def barrier(rng: np.random.Generator, length: float, w: float, h: float) -> Mesh:
    """A barrier: broad base, narrow top, red (or orange) and white stripes along its width."""
    red: Colour = (35, 40, 205) if rng.random() < 0.6 else (20, 110, 240)
    num = 6
    edges = np.linspace(-w / 2, w / 2, num + 1)
    parts = [box((-length / 2, length / 2), (-w / 2, w / 2), (0.0, 0.2 * h), (150, 155, 158))]
    for k in range(num):
        paint: Colour = red if k % 2 else (238, 238, 238)
        parts.append(
            box(
                (-0.3 * length, 0.3 * length),
                (edges[k], edges[k + 1]),
                (0.2 * h, h),
                paint,
                rear=0.1 * length,
                front=0.1 * length,
            )
        )
    return join(parts)


def traffic_cone(rng: np.random.Generator, length: float, w: float, h: float) -> Mesh:
    """An orange cone with white bands on a square foot."""
    orange: Colour = (15, float(rng.uniform(85, 115)), float(rng.uniform(235, 252)))
    r = 0.42 * min(length, w)
    bands: tuple[tuple[float, float, Colour], ...] = (
        (0.06, 0.36, orange),
        (0.36, 0.52, (240, 240, 240)),
        (0.52, 0.66, orange),
        (0.66, 0.8, (240, 240, 240)),
        (0.8, 1.0, orange),
    )
    parts = [box((-length / 2, length / 2), (-w / 2, w / 2), (0.0, 0.06 * h), (25, 70, 190))]
    for z0, z1, paint in bands:
        r0, r1 = r * (1.05 - 0.9 * z0), r * (1.05 - 0.9 * z1)
        parts.append(
            cylinder((0.0, 0.0, (z0 + z1) / 2 * h), r0, (z1 - z0) / 2 * h, paint, axis=2, top=r1 / r0)
        )
    return join(parts)

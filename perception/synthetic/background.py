"""Unlabelled surroundings: buildings, trees and lamp posts beside the road."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import shapely
from shapely.geometry import Point, Polygon

from perception.synthetic.mesh import (
    Colour,
    Mesh,
    beam,
    box,
    cylinder,
    ground_shadow,
    join,
    panel,
    side_panels,
)
from perception.synthetic.road import Road
from perception.synthetic.vehicles import DARK, pick

WALLS: tuple[Colour, ...] = (
    (120, 135, 160),
    (95, 105, 125),
    (150, 160, 165),
    (140, 150, 175),
    (110, 120, 120),
    (85, 100, 150),
)
LEAVES: tuple[Colour, ...] = ((45, 95, 50), (40, 110, 75), (55, 120, 60), (35, 80, 60))


@dataclass(frozen=True)
class Prop:
    """A fixed object: its kind and mesh, (x, y, yaw) in the global frame and (length, width, height), metres."""

    kind: Literal["building", "tree", "lamp", "fence", "wall"]
    mesh: Mesh
    pose: tuple[float, float, float]
    size: tuple[float, float, float]


def prop_shadow(prop: Prop) -> Mesh:
    """The shadow on the ground below a prop."""
    return ground_shadow(prop.size[0] + 0.6, prop.size[1] + 0.6, -0.004)


def _building(rng: np.random.Generator, length: float, w: float, h: float) -> Mesh:
    wall = pick(rng, WALLS)
    glass: Colour = (95.0, 85.0, 75.0) if rng.random() < 0.7 else (60.0, 62.0, 65.0)
    parts = [box((-length / 2, length / 2), (-w / 2, w / 2), (0.0, h), wall)]
    storey = float(rng.uniform(3.2, 4.2))
    columns = max(2, int(length / 3.5))
    for k in range(int(h / storey)):
        z = (k * storey + 1.0, k * storey + 2.4)
        for x in (np.arange(columns) + 0.5) / columns * length - length / 2:
            parts.append(side_panels((x - 0.8, x + 0.8), w / 2 + 0.03, z, glass))
        for x in (-length / 2 - 0.03, length / 2 + 0.03):
            parts.append(panel(x, (-0.4 * w, 0.4 * w), z, glass))
    return join(parts)


def _tree(rng: np.random.Generator, radius: float, height: float) -> Mesh:
    leaves = pick(rng, LEAVES)
    trunk = 0.35 * height
    parts = [
        beam((0.0, 0.0, 0.0), (0.0, 0.0, trunk + 0.3), 0.32, (45, 65, 85)),
        cylinder(
            (0.0, 0.0, trunk + 0.16 * height), radius * 0.72, 0.16 * height, leaves, axis=2, sides=7, top=1.4
        ),
        cylinder((0.0, 0.0, trunk + 0.48 * height), radius, 0.16 * height, leaves, axis=2, sides=7, top=0.45),
    ]
    return join(parts)


def _lamp(height: float) -> Mesh:
    arm = (1.6, 0.0, height)
    return join(
        [
            beam((0.0, 0.0, 0.0), (0.0, 0.0, height), 0.14, DARK),
            beam((0.0, 0.0, height), arm, 0.1, DARK),
            box((1.2, 1.9), (-0.15, 0.15), (height - 0.12, height), (150, 230, 250), glow=0.7),
        ]
    )


def build_background(rng: np.random.Generator, road: Road, keep_out: list[Polygon]) -> list[Prop]:
    """Line the road with buildings behind the pavement, trees on the verge and lamps at the kerb.

    Args:
        rng: source of randomness.
        road: the scene's road.
        keep_out: outlines of standing objects, which nothing may touch.
    """
    props: list[Prop] = []
    clear = road.surface.buffer(road.walk_width + 0.6)
    taken = [shape.buffer(0.6) for shape in keep_out]
    for side in (-1, 1):
        edge = road.right_edge if side < 0 else road.left_edge
        s = rng.uniform(0.0, 12.0)
        while s < road.centre.length:
            length, w, h = rng.uniform(9.0, 24.0), rng.uniform(8.0, 14.0), rng.uniform(5.0, 17.0)
            u = edge + side * (road.walk_width + rng.uniform(3.0, 11.0) + w / 2)
            xy, yaw = road.centre.at(s + length / 2)
            x, y = xy + u * np.array([-np.sin(yaw), np.cos(yaw)])
            corners = np.array([(length, w), (-length, w), (-length, -w), (length, -w)]) / 2
            turn = np.array([[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]])
            shape = Polygon(corners @ turn + [x, y])
            if (
                rng.random() < 0.75
                and not shape.intersects(clear)
                and not shapely.intersects(taken, shape).any()
            ):
                taken.append(shape.buffer(0.5))
                props.append(
                    Prop(
                        "building",
                        _building(rng, length, w, h),
                        (float(x), float(y), float(yaw)),
                        (length, w, h),
                    )
                )
            s += length + rng.uniform(1.0, 10.0)
        s = rng.uniform(0.0, 8.0)
        while s < road.centre.length:
            u = edge + side * (road.walk_width + rng.uniform(0.9, 2.6))
            xy, yaw = road.centre.at(s)
            x, y = xy + u * np.array([-np.sin(yaw), np.cos(yaw)])
            spot = Point(x, y)
            if not spot.within(clear) and not shapely.intersects(taken, spot.buffer(1.0)).any():
                r, h = rng.uniform(1.0, 1.9), rng.uniform(4.0, 7.5)
                props.append(
                    Prop(
                        "tree",
                        _tree(rng, r, h),
                        (float(x), float(y), float(rng.uniform(-3, 3))),
                        (0.32, 0.32, h),
                    )
                )
            s += rng.uniform(8.0, 24.0)
        s = rng.uniform(0.0, 20.0)
        while s < road.centre.length:
            u = edge + side * (road.walk_width + 0.25)
            xy, yaw = road.centre.at(s)
            x, y = xy + u * np.array([-np.sin(yaw), np.cos(yaw)])
            spot = Point(x, y)
            if (
                spot.distance(road.surface) > road.walk_width - 0.3
                and not shapely.intersects(taken, spot).any()
            ):
                h = rng.uniform(6.0, 7.5)
                props.append(
                    Prop(
                        "lamp", _lamp(h), (float(x), float(y), float(yaw) - side * np.pi / 2), (0.15, 0.15, h)
                    )
                )
            s += rng.uniform(24.0, 32.0)
    return props

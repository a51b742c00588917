"""What stands at the kerb and is labelled: traffic lights, traffic signs, their poles, fences and walls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import shapely
from shapely.geometry import LineString, Point, Polygon

from perception.synthetic.background import Prop
from perception.synthetic.mesh import Colour, Mesh, beam, box, disc, join, panel
from perception.synthetic.road import CROSSING_WIDTH, Road
from perception.synthetic.vehicles import DARK, pick

LightColour = Literal["R", "Y", "G", "NA"]

_POLES: tuple[Colour, ...] = ((95, 100, 100), (120, 122, 120), (70, 85, 70))
_FENCES: tuple[Colour, ...] = ((70, 75, 80), (225, 228, 230), (60, 90, 130), (55, 80, 45))
_WALLS: tuple[Colour, ...] = ((135, 150, 165), (85, 100, 150), (150, 150, 145), (120, 150, 180))
_RED: Colour = (35, 30, 205)
_WHITE: Colour = (240, 240, 240)
_BLUE: Colour = (190, 95, 25)
_YELLOW: Colour = (40, 200, 245)
_GREY: Colour = (128, 130, 130)
_LAMPS: tuple[tuple[LightColour, float, Colour], ...] = (
    ("R", 0.79, (50, 45, 255)),
    ("Y", 0.475, (60, 205, 255)),
    ("G", 0.16, (150, 255, 90)),
)
_HEAD_HEIGHT = 0.95


@dataclass(frozen=True)
class Fixture:
    """A fixed, labelled object.

    Attributes:
        seg_class: segmentation class.
        category: box category, None for poles.
        mesh: shape in the object frame.
        pose: (x, y, yaw), global frame.
        light: colour that a traffic light shows to those in front of it.
        is_front_only: nothing but its front counts (a sign's grey back is not a traffic sign).
    """

    seg_class: str
    category: str | None
    mesh: Mesh
    pose: tuple[float, float, float]
    light: LightColour = "NA"
    is_front_only: bool = False


def light_head(bottom: float, light: LightColour) -> Mesh:
    """A traffic light's head of three lamps, `bottom` metres above the ground, that shines along +x."""
    top = bottom + _HEAD_HEIGHT
    parts = [
        box((-0.12, 0.12), (-0.17, 0.17), (bottom, top), (38, 40, 40)),
        box((-0.02, 0.0), (-0.27, 0.27), (bottom - 0.08, top + 0.08), (28, 30, 30)),
    ]
    for name, height, colour in _LAMPS:
        b, g, r = colour
        shade: Colour = colour if name == light else (0.28 * b, 0.28 * g, 0.28 * r)
        glow = 1.0 if name == light else 0.0
        parts.append(disc(0.125, (0.0, bottom + height), 0.135, shade, glow=glow))
    return join(parts)


def sign_plate(kind: Literal["limit", "warning", "stop", "parking", "direction"], bottom: float) -> Mesh:
    """A traffic sign's plate, `bottom` metres above the ground, that faces +x; its back is grey."""
    if kind == "limit":
        rings = ((0.36, _RED, 16), (0.26, _WHITE, 16))
        marks = [panel(0.021, (s * 0.08 - 0.045, s * 0.08 + 0.045), (-0.13, 0.13), DARK) for s in (-1, 1)]
    elif kind == "warning":
        rings = ((0.46, _RED, 3), (0.31, _WHITE, 3))
        marks = [panel(0.021, (-0.03, 0.03), (-0.1, 0.12), DARK)]
    elif kind == "stop":
        rings = ((0.42, _WHITE, 8), (0.38, _RED, 8))
        marks = [panel(0.021, (-0.26, 0.26), (-0.06, 0.06), _WHITE)]
    else:
        width, height = (0.33, 0.33) if kind == "parking" else (0.95, 0.35)
        paint = _BLUE if kind == "parking" else (75.0, 120.0, 35.0)
        plate = [
            box((-0.01, 0.01), (-width, width), (0.0, 2 * height), _GREY),
            panel(0.013, (-width, width), (0.0, 2 * height), _WHITE),
            panel(0.017, (-width + 0.04, width - 0.04), (0.04, 2 * height - 0.04), paint),
            panel(0.021, (-0.55 * width, 0.55 * width), (0.85 * height, 1.15 * height), _WHITE),
        ]
        return _raised(join(plate), bottom)
    (outer, rim, sides), (inner, face, _) = rings
    parts = [
        disc(0.0, (0.0, 0.0), outer, _GREY, sides=sides),
        disc(0.013, (0.0, 0.0), outer, rim, sides=sides),
        disc(0.017, (0.0, 0.0), inner, face, sides=sides),
        *marks,
    ]
    return _raised(join(parts), bottom + outer)


def _raised(mesh: Mesh, height: float) -> Mesh:
    return Mesh(mesh.vertices + [0.0, 0.0, height], mesh.triangles, mesh.colours, mesh.glow)


class Furnisher:
    """Furnishes a road; nothing is put where something stands.

    Args:
        rng: source of randomness.
        road: where.
        keep_out: outlines of standing objects.
    """

    def __init__(self, *, rng: np.random.Generator, road: Road, keep_out: Sequence[Polygon]) -> None:
        self._rng, self._road = rng, road
        self._taken = shapely.buffer(np.array(keep_out, dtype=object), 0.3)
        self._pole = pick(rng, _POLES)

    def fixtures(self) -> list[Fixture]:
        """Traffic lights at some of the crossings, and signs along both kerbs."""
        found: list[Fixture] = []
        for s in self._road.crossing_s:
            if self._rng.random() < 0.55:
                found += self._lights(s)
        for side in (-1, 1):
            found += self._signs(side)
        return found

    def edges(self) -> list[Prop]:
        """Fences and walls behind the pavements."""
        return [prop for side in (-1, 1) for prop in self._edge(side)]

    def _at(self, s: float, u: float) -> tuple[float, float, float]:
        xy, yaw = self._road.centre.at(s)
        x, y = xy + u * np.array([-np.sin(yaw), np.cos(yaw)])
        return float(x), float(y), float(yaw)

    def _is_free(self, s: float, u: float) -> bool:
        x, y, _ = self._at(s, u)
        spot = Point(x, y)
        return spot.distance(self._road.surface) > 0.3 and not shapely.intersects(self._taken, spot).any()

    def _kerb(self, side: int) -> float:
        return self._road.right_edge if side < 0 else self._road.left_edge

    def _lights(self, crossing: float) -> Iterator[Fixture]:
        """Lights for both directions before a crossing, on posts, some also on an arm over the lanes."""
        rng, road = self._rng, self._road
        state: LightColour = ("R", "G", "Y")[int(rng.choice(3, p=(0.45, 0.45, 0.1)))]
        has_arm = rng.random() < 0.5
        for side in (-1, 1):
            # -1: the right kerb, whose traffic drives along the road; its lights shine against it.
            s = crossing + side * (CROSSING_WIDTH / 2 + 1.0)
            u = self._kerb(side) + side * rng.uniform(0.5, 0.9)
            if not self._is_free(s, u):
                continue
            x, y, yaw = self._at(s, u)
            turn = np.pi if side < 0 else 0.0
            height = 5.9 if has_arm else 3.6
            parts = [beam((0.0, 0.0, 0.0), (0.0, 0.0, height), 0.17, self._pole)]
            lanes = road.lanes[0 if side < 0 else 1]
            # The arm reaches over the middle of the lanes of its direction.
            reach = abs(u) - 0.5 * lanes * road.lane_width
            if has_arm:
                parts.append(
                    beam((0.0, 0.0, height - 0.1), (0.0, -side * reach, height - 0.1), 0.13, self._pole)
                )
            yield Fixture("pole", None, join(parts), (x, y, yaw))
            ahead = np.array([np.cos(yaw + turn), np.sin(yaw + turn)])
            places = [(np.array([x, y]), 2.4)]
            if has_arm:
                across = -side * reach * np.array([-np.sin(yaw), np.cos(yaw)])
                places.append((np.array([x, y]) + across, height - 0.6))
            for place, bottom in places:
                head = place + 0.24 * ahead
                mesh = light_head(bottom, state)
                pose = (float(head[0]), float(head[1]), yaw + turn)
                yield Fixture("traffic light", "traffic light", mesh, pose, light=state)

    def _signs(self, side: int) -> Iterator[Fixture]:
        rng = self._rng
        s = rng.uniform(0.0, 20.0)
        while s < self._road.centre.length - 5.0:
            u = self._kerb(side) + side * rng.uniform(0.45, 0.8)
            kinds: tuple[Literal["limit", "warning", "stop", "parking", "direction"], ...]
            kinds = ("limit", "warning", "stop", "parking", "direction")
            kind = kinds[int(rng.choice(5, p=(0.3, 0.25, 0.1, 0.2, 0.15)))]
            bottom = float(rng.uniform(2.0, 2.5))
            if self._is_free(s, u):
                x, y, yaw = self._at(s, u)
                turn = (np.pi if side < 0 else 0.0) + rng.normal(0.0, 0.06)
                pose = (x, y, yaw + turn)
                mesh = sign_plate(kind, bottom)
                top = float(mesh.vertices[:, 2].max()) - 0.05
                post = beam((-0.06, 0.0, 0.0), (-0.06, 0.0, top), 0.08, self._pole)
                yield Fixture("pole", None, post, pose)
                yield Fixture("traffic sign", "traffic sign", mesh, pose, is_front_only=True)
            s += rng.uniform(14.0, 40.0)

    def _edge(self, side: int) -> Iterator[Prop]:
        """Stretches of fence or wall, panel by panel, with gaps between them."""
        rng, road = self._rng, self._road
        s = rng.uniform(0.0, 25.0)
        while s < road.centre.length - 4.0:
            kind: Literal["fence", "wall"] = "fence" if rng.random() < 0.55 else "wall"
            length, pitch = rng.uniform(8.0, 28.0), 2.5
            u = self._kerb(side) + side * (road.walk_width + rng.uniform(0.15, 0.35))
            height = float(rng.uniform(0.9, 1.7) if kind == "fence" else rng.uniform(0.7, 2.3))
            paint = pick(rng, _FENCES if kind == "fence" else _WALLS)
            mesh = _fence(pitch, height, paint) if kind == "fence" else _wall(pitch, height, paint)
            for k in range(int(length / pitch)):
                (x0, y0, _), (x1, y1, _) = self._at(s + k * pitch, u), self._at(s + (k + 1) * pitch, u)
                line = LineString([(x0, y0), (x1, y1)])
                is_taken = bool(shapely.intersects(self._taken, line).any())
                if is_taken or line.distance(road.surface) < road.walk_width - 0.2:
                    continue
                # In a bend the outer panels stand a few centimetres apart.
                pose = ((x0 + x1) / 2, (y0 + y1) / 2, float(np.arctan2(y1 - y0, x1 - x0)))
                yield Prop(kind, mesh, pose, (pitch, 0.25, height))
            s += length + rng.uniform(6.0, 45.0)


def _fence(length: float, height: float, paint: Colour) -> Mesh:
    half = length / 2
    parts = [beam((x, 0.0, 0.0), (x, 0.0, height), 0.09, paint) for x in (-half, half)]
    for z in (0.15, height - 0.1):
        parts.append(beam((-half, 0.0, z), (half, 0.0, z), 0.07, paint))
    for x in np.arange(-half + 0.16, half, 0.16):
        parts.append(box((x - 0.035, x + 0.035), (-0.015, 0.015), (0.1, height - 0.04), paint))
    return join(parts)


def _wall(length: float, height: float, paint: Colour) -> Mesh:
    half = length / 2 + 0.02
    b, g, r = paint
    return join(
        [
            box((-half, half), (-0.12, 0.12), (0.0, height - 0.08), paint),
            box((-half, half), (-0.16, 0.16), (height - 0.08, height), (0.8 * b, 0.8 * g, 0.8 * r)),
        ]
    )

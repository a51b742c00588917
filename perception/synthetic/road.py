"""One scene's road: its plan (lanes, junctions, crossings) and the plane geometry that follows from it.

The same polygons and lines are painted on the ground (`ground.py`) and written to the map expansion
(`map_expansion.py`), so what is annotated is what can be seen. Traffic keeps to the right.
Across the road, `u` is the distance from the road divider in metres, positive to the left of the centre line's
direction, in which the ego vehicle drives; along it, `s` is the arc length of the centre line.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import shapely
import shapely.ops
from numpy.typing import NDArray
from shapely.geometry import LineString, MultiPolygon, Polygon

from perception.synthetic.path import Path, random_centreline

Array = NDArray[np.float64]

START_MARGIN = 62.0  # road behind the ego vehicle's first position, metres
END_MARGIN = 75.0  # road ahead of its last position
CROSSING_WIDTH = 3.6  # length of a zebra along the road, metres
FILLET = 6.0  # radius of the kerb at a junction's inner corner, metres


@dataclass(frozen=True)
class SideRoad:
    """A road that meets the main one at arc length `s`; `path` runs from the main centre line outwards."""

    s: float
    path: Path
    half_width: float
    start: float  # where, along `path`, its own markings begin


@dataclass(frozen=True)
class Road:
    """The road of one scene, global frame, metres.

    Attributes:
        centre: centre line = road divider (u = 0).
        lane_width: width of each lane.
        lanes: (own direction, oncoming) number of lanes.
        strips: (right, left) width of the parking strip between the outer lane and the kerb, 0 if none.
        walk_width: width of the pavement outside the kerb.
        side_roads: side roads of the junctions.
        crossing_s: arc lengths of the main road's zebra crossings.
        surface: outline of all carriageways; its border is the kerb.
        walkway: pavements.
        crossings: zebra crossings, four corners each; the edges 0-1 and 2-3 run across the road.
        intersections: carriageway of each junction.
        lane_polygons: one polygon per lane between junctions.
        road_dividers: lines between the directions of travel, (n, 2) each.
        lane_dividers: lines between lanes of one direction.
        stop_bars: painted bars at the mouths of side roads, four corners each.
        blocked: arc-length intervals of junctions and crossings, where nothing may park.
    """

    centre: Path
    lane_width: float
    lanes: tuple[int, int]
    strips: tuple[float, float]
    walk_width: float
    side_roads: list[SideRoad]
    crossing_s: list[float]
    surface: Polygon
    walkway: MultiPolygon
    crossings: list[Array]
    intersections: list[Polygon] = field(default_factory=list)
    lane_polygons: list[Polygon] = field(default_factory=list)
    road_dividers: list[Array] = field(default_factory=list)
    lane_dividers: list[Array] = field(default_factory=list)
    stop_bars: list[Array] = field(default_factory=list)
    blocked: list[tuple[float, float]] = field(default_factory=list)

    @property
    def right_edge(self) -> float:
        """Offset u of the right kerb (negative)."""
        return -(self.lanes[0] * self.lane_width + self.strips[0])

    @property
    def left_edge(self) -> float:
        """Offset u of the left kerb (positive)."""
        return self.lanes[1] * self.lane_width + self.strips[1]

    def is_blocked(self, s0: float, s1: float) -> bool:
        """Whether the interval touches a junction or a crossing of the main road."""
        return any(s0 < b and s1 > a for a, b in self.blocked)


def _ribbon(path: Path, u0: float, u1: float, s0: float, s1: float, step: float = 1.0) -> Polygon:
    """Polygon between two offsets of a path over an interval of arc length."""
    s = np.linspace(s0, s1, max(2, int(np.ceil((s1 - s0) / step)) + 1))
    xy, yaw = path.at(s)
    normal = np.stack([-np.sin(yaw), np.cos(yaw)], axis=-1)
    return Polygon(np.concatenate([xy + u0 * normal, (xy + u1 * normal)[::-1]]))


def _line(path: Path, u: float, s0: float, s1: float) -> Array:
    s = np.linspace(s0, s1, max(2, int(np.ceil(s1 - s0)) + 1))
    xy, yaw = path.at(s)
    return np.asarray(xy + u * np.stack([-np.sin(yaw), np.cos(yaw)], axis=-1))


def _gaps(blocked: list[tuple[float, float]], length: float) -> list[tuple[float, float]]:
    """Intervals of [0, length] outside the blocked ones, at least 4 m long."""
    free, start = [], 0.0
    for a, b in sorted(blocked):
        if a - start >= 4.0:
            free.append((start, a))
        start = max(start, b)
    if length - start >= 4.0:
        free.append((start, length))
    return free


def _zebra(path: Path, s: float, u0: float, u1: float) -> Array:
    """Corners of a crossing: 0-1 across the road on the near side, 2-3 on the far side."""
    near, yaw0 = path.at(s - CROSSING_WIDTH / 2)
    far, yaw1 = path.at(s + CROSSING_WIDTH / 2)
    n0 = np.array([-np.sin(yaw0), np.cos(yaw0)])
    n1 = np.array([-np.sin(yaw1), np.cos(yaw1)])
    return np.array([near + u0 * n0, near + u1 * n0, far + u1 * n1, far + u0 * n1])


def _side_road(rng: np.random.Generator, centre: Path, s: float, side: int, edge: float) -> SideRoad | None:
    xy, yaw = centre.at(s)
    angle = float(yaw) + side * (np.pi / 2 + rng.uniform(-0.25, 0.25))
    half_width = float(rng.uniform(3.0, 3.7))
    reach = np.linspace(0.0, abs(edge) + rng.uniform(40.0, 52.0), 60)
    path = Path.from_points(xy + reach[:, None] * np.array([np.cos(angle), np.sin(angle)]))
    far = path.xy[path.s > abs(edge) + 12.0]
    if np.hypot(*(far[:, None] - centre.xy[None]).transpose(2, 0, 1)).min() < abs(edge) + 8.0:
        return None  # it would run back into the bending main road
    return SideRoad(s, path, half_width, abs(edge) + 4.5)


def build_road(rng: np.random.Generator, *, travel: float, lanes: tuple[int, int], bend: float) -> Road:
    """Draw one scene's road around the stretch that the ego vehicle travels.

    Args:
        rng: source of randomness.
        travel: metres that the ego vehicle drives; it starts at s = START_MARGIN.
        lanes: (own direction, oncoming) number of lanes.
        bend: 0 (straight) to 1 (winding).

    Returns:
        The road with the lower left corner of its bounding box at (40, 40) m.
    """
    length = START_MARGIN + travel + END_MARGIN
    centre = random_centreline(rng, length=length, bend=bend)
    lane_width = float(rng.uniform(3.0, 3.8))
    strips = [float(w) for w in rng.uniform(2.9, 3.3, 2) * (rng.random(2) < 0.6)]
    if not any(strips):
        strips[int(rng.integers(2))] = 3.1
    right = -(lanes[0] * lane_width + strips[0])
    left = lanes[1] * lane_width + strips[1]

    side_roads: list[SideRoad] = []
    junction_s: list[tuple[float, float]] = []
    s = START_MARGIN + rng.uniform(-25.0, 20.0)
    while s < length - 45.0:
        arms = [
            _side_road(rng, centre, s, side, left if side > 0 else right)
            for side in ((1, -1) if rng.random() < 0.4 else (int(rng.choice([1, -1])),))
        ]
        found = [arm for arm in arms if arm is not None]
        side_roads += found
        if found:
            junction_s.append((s, max(arm.half_width for arm in found)))
        s += rng.uniform(70.0, 110.0)

    crossing_s: list[float] = []
    for s, half in junction_s:
        reach = half + FILLET + 2.5
        crossing_s += [s + d for d in (-reach, reach) if rng.random() < 0.75]
    s = 18.0 + rng.uniform(0.0, 20.0)
    while s < length - 12.0:
        if all(abs(s - c) > 24.0 for c in crossing_s) and all(abs(s - c) > 26.0 for c, _ in junction_s):
            crossing_s.append(s)
        s += rng.uniform(26.0, 46.0)
    crossing_s = sorted(c for c in crossing_s if 8.0 < c < length - 8.0)

    # Move the whole picture so that all coordinates are positive.
    shapes = [_ribbon(centre, right, left, 0.0, length)]
    shapes += [_ribbon(r.path, -r.half_width, r.half_width, 0.0, r.path.length) for r in side_roads]
    shift = 40.0 - np.array(shapely.unary_union(shapes).bounds[:2])
    centre = Path.from_points(centre.xy + shift)
    side_roads = [
        SideRoad(r.s, Path.from_points(r.path.xy + shift), r.half_width, r.start) for r in side_roads
    ]
    return _derive(rng, centre, lane_width, lanes, (strips[0], strips[1]), side_roads, junction_s, crossing_s)


def _derive(
    rng: np.random.Generator,
    centre: Path,
    lane_width: float,
    lanes: tuple[int, int],
    strips: tuple[float, float],
    side_roads: list[SideRoad],
    junction_s: list[tuple[float, float]],
    crossing_s: list[float],
) -> Road:
    """Work out polygons and lines from the plan."""
    right, left = -(lanes[0] * lane_width + strips[0]), lanes[1] * lane_width + strips[1]
    length = centre.length
    main = _ribbon(centre, right, left, 0.0, length)
    arms = [_ribbon(r.path, -r.half_width, r.half_width, 0.0, r.path.length) for r in side_roads]
    surface = shapely.unary_union([main, *arms]).buffer(FILLET, quad_segs=6).buffer(-FILLET, quad_segs=6)
    surface = surface.simplify(0.01)
    if not isinstance(surface, Polygon):
        surface = max(surface.geoms, key=lambda g: g.area)
    walk_width = float(rng.uniform(2.6, 4.0))
    walkway = surface.buffer(walk_width, quad_segs=6).difference(surface)
    if isinstance(walkway, Polygon):
        walkway = MultiPolygon([walkway])

    junction_spans = [(s - half - FILLET, s + half + FILLET) for s, half in junction_s]
    half_zebra = CROSSING_WIDTH / 2 + 1.0
    blocked = junction_spans + [(c - half_zebra, c + half_zebra) for c in crossing_s]
    crossings = [_zebra(centre, c, right, left) for c in crossing_s]
    intersections = []
    for (a, b), (s, _) in zip(junction_spans, junction_s, strict=True):
        core = _ribbon(centre, right, left, a, b)
        spurs = [
            _ribbon(r.path, -r.half_width - FILLET, r.half_width + FILLET, 0.0, r.start)
            for r in side_roads
            if r.s == s
        ]
        shape = shapely.unary_union([core, *spurs]).intersection(surface)
        intersections.append(shape if isinstance(shape, Polygon) else max(shape.geoms, key=lambda g: g.area))

    lane_polygons, road_dividers, lane_dividers, stop_bars = [], [], [], []
    for a, b in _gaps(junction_spans, length):
        for k in range(-lanes[0], lanes[1]):
            # 5 cm inside the carriageway, so that the union with the road segments has no slivers
            u0 = max(k * lane_width, right + 0.05)
            u1 = min((k + 1) * lane_width, left - 0.05)
            lane_polygons.append(_ribbon(centre, u0, u1, a, b))
    for a, b in _gaps(blocked, length):
        road_dividers.append(_line(centre, 0.0, a, b))
        for k in range(1, lanes[0]):
            lane_dividers.append(_line(centre, -k * lane_width, a, b))
        for k in range(1, lanes[1]):
            lane_dividers.append(_line(centre, k * lane_width, a, b))
    for r in side_roads:
        start = r.start
        if rng.random() < 0.6:
            s = start + CROSSING_WIDTH / 2 + 1.0
            crossings.append(_zebra(r.path, s, -r.half_width, r.half_width))
            start = s + half_zebra
        end = r.path.length
        road_dividers.append(_line(r.path, 0.0, start, end))
        lane_polygons.append(_ribbon(r.path, -r.half_width + 0.05, 0.0, r.start, end - 0.05))
        lane_polygons.append(_ribbon(r.path, 0.0, r.half_width - 0.05, r.start, end - 0.05))
        bar = _ribbon(r.path, 0.3, r.half_width - 0.3, start, start + 0.45, step=0.45)
        stop_bars.append(np.asarray(bar.exterior.coords)[:4])
    return Road(
        centre,
        lane_width,
        lanes,
        strips,
        walk_width,
        side_roads,
        crossing_s,
        surface,
        walkway,
        crossings,
        intersections,
        lane_polygons,
        road_dividers,
        lane_dividers,
        stop_bars,
        blocked,
    )


def line_pieces(line: Array, *, dash: float, gap: float) -> list[Array]:
    """Cut a line into painted dashes of `dash` metres, `gap` metres apart."""
    geometry, pieces, s = LineString(line), [], 0.0
    while s < geometry.length:
        piece = shapely.ops.substring(geometry, s, min(s + dash, geometry.length))
        pieces.append(np.asarray(piece.coords))
        s += dash + gap
    return pieces

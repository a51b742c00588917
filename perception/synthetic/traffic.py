"""Who is on the road: parked and moving traffic, people, cones and barriers, placed without any overlap.

Each kind is drawn along the whole road at a fixed density, so that every stretch holds all ten classes; whatever would
touch something placed earlier at any time is dropped.
"""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry import LineString

from perception.synthetic.actors import Actor, draw_size, make_actor
from perception.synthetic.collision import Occupancy
from perception.synthetic.motion import Trajectory, along, standing, travelled
from perception.synthetic.path import Path
from perception.synthetic.rig import EGO_CENTRE_AHEAD, EGO_LENGTH, EGO_WIDTH
from perception.synthetic.road import Road

Array = NDArray[np.float64]

# What stands along a kerb with a parking strip, and along one without; one shuffled deck fills about 100 m.
STRIP_DECK: tuple[str, ...] = tuple(
    "car car car car truck bus bus cones cones barriers barriers motorcycle bicycle bicycle gap gap".split()
)
BARE_DECK: tuple[str, ...] = tuple(
    "cones barriers barriers motorcycle bicycle bicycle gap gap gap gap".split()
)
# What stands on the verge behind the pavement.
VERGE_DECK: tuple[str, ...] = tuple("construction_vehicle trailer construction_vehicle trailer truck".split())
MOVING_DECK: tuple[str, ...] = tuple("car car car bus truck motorcycle towing car bus car".split())


class TrafficBuilder:
    """Fills a road with actors.

    Args:
        rng: source of randomness.
        road: where.
        times: the scene's time grid, seconds.
        ego: the ego vehicle's drive.
        ego_speed: (n,) its speed, m/s.
    """

    def __init__(
        self, *, rng: np.random.Generator, road: Road, times: Array, ego: Trajectory, ego_speed: Array
    ) -> None:
        self.rng, self.road, self.times, self.ego_speed = rng, road, times, ego_speed
        self.actors: list[Actor] = []
        self._occupancy = Occupancy(len(times))
        self._occupancy.add(ego, EGO_LENGTH + 0.8, EGO_WIDTH + 0.5, ahead=EGO_CENTRE_AHEAD)

    def build(self) -> list[Actor]:
        """Place everything and return the actors in a fixed order."""
        for side in (-1, 1):
            self._kerbside(side)
            self._verge(side)
        self._cyclists()
        for direction in (1, -1):
            self._stream(direction)
        for side in (-1, 1):
            self._walkers(side)
        self._crossing_walkers()
        return self.actors

    def add(self, actor: Actor, *, gap: float) -> bool:
        """Put an actor made elsewhere into the scene, unless it would come closer than `gap` metres to another."""
        width, length, _ = actor.size
        if not self._occupancy.is_free(actor.trajectory, length, width, gap):
            return False
        self._occupancy.add(actor.trajectory, length, width)
        self.actors.append(actor)
        return True

    def _place(
        self,
        name: str,
        trajectory: Trajectory,
        *,
        gap: float,
        static: bool,
        rider: bool = False,
        size: tuple[float, float, float] | None = None,
    ) -> bool:
        size = size or draw_size(self.rng, name, rider=rider)
        if not self._occupancy.is_free(trajectory, size[1], size[0], gap):
            return False
        actor = make_actor(
            self.rng, name, size, trajectory, conduct="static" if static else "mover", rider=rider
        )
        self._occupancy.add(trajectory, actor.size[1], actor.size[0])
        self.actors.append(actor)
        return True

    def _stand(
        self,
        name: str,
        s: float,
        u: float,
        turn: float,
        *,
        gap: float = 0.1,
        size: tuple[float, float, float] | None = None,
        parked: bool = True,
    ) -> bool:
        xy, yaw = self.road.centre.at(s)
        xy = xy + u * np.array([-np.sin(yaw), np.cos(yaw)])
        return self._place(
            name, standing(self.times, xy, float(yaw) + turn), gap=gap, static=parked, size=size
        )

    def _kerbside(self, side: int) -> None:
        """Fill one kerb with parked vehicles and works; without a parking strip only small things stand there."""
        rng, road = self.rng, self.road
        edge = road.right_edge if side < 0 else road.left_edge
        strip = road.strips[0 if side < 0 else 1]
        forward = 0.0 if side < 0 else np.pi
        deck: list[str] = []
        s = rng.uniform(3.0, 8.0)
        while s < road.centre.length - 14.0:
            if not deck:
                deck = [str(x) for x in rng.permutation(STRIP_DECK if strip else BARE_DECK)]
            item = deck.pop()
            if item == "gap":
                s += rng.uniform(4.0, 9.0)
                continue
            if item in ("cones", "barriers"):
                s += self._works(item, s, side, edge, strip)
                continue
            size = draw_size(rng, item)
            if item in ("motorcycle", "bicycle"):
                # on the pavement, near the kerb
                u = edge + side * rng.uniform(0.7, 1.1)
                self._stand(
                    item,
                    s + 1.5,
                    u,
                    forward + rng.normal(0.0, 0.25) + np.pi * (rng.random() < 0.2),
                    size=size,
                )
                s += rng.uniform(2.0, 3.5) + (0.0 if strip else 5.0)
                continue
            while road.is_blocked(s, s + size[1]) and s < road.centre.length - 14.0:
                s += 1.0
            u = edge - side * (size[0] / 2 + max(0.05, min(0.25, strip - size[0])) * rng.random())
            # a bus at the kerb is at its stop, the others are parked
            turn = forward + rng.normal(0.0, 0.02)
            self._stand(item, s + size[1] / 2, u, turn, size=size, parked=item != "bus")
            s += size[1] + rng.uniform(0.9, 3.0)

    def _verge(self, side: int) -> None:
        """Stand machines and trailers on the grass behind the pavement."""
        rng, road = self.rng, self.road
        edge = road.right_edge if side < 0 else road.left_edge
        clear = road.surface.buffer(road.walk_width + 0.2, quad_segs=4)
        shapely.prepare(clear)
        deck: list[str] = []
        s = rng.uniform(2.0, 20.0)
        while s < road.centre.length:
            if not deck:
                deck = [str(x) for x in rng.permutation(VERGE_DECK)]
            item = deck.pop()
            size = draw_size(rng, item)
            along_road = item != "construction_vehicle" or rng.random() < 0.3
            depth = size[0] if along_road else max(size[:2])
            turn = (
                (np.pi * int(rng.integers(2)) + rng.normal(0.0, 0.08))
                if along_road
                else rng.uniform(-np.pi, np.pi)
            )
            u = edge + side * (road.walk_width + depth / 2 + rng.uniform(0.3, 1.6))
            xy, yaw = road.centre.at(s)
            xy = xy + u * np.array([-np.sin(yaw), np.cos(yaw)])
            reach = LineString(
                [xy + k * size[1] / 2 * np.array([np.cos(yaw + turn), np.sin(yaw + turn)]) for k in (-1, 1)]
            )
            if clear.intersects(reach.buffer(size[0] / 2, cap_style="flat")):
                deck.append(item)
                s += 4.0
                continue
            self._stand(item, s, u, turn, size=size)
            s += rng.uniform(20.0, 38.0)

    def _works(self, item: str, s: float, side: int, edge: float, strip: float) -> float:
        """Stand a row of cones or barriers; return the length used up."""
        rng = self.rng
        inward = edge - side * (strip * rng.uniform(0.5, 1.0) if strip else rng.uniform(0.3, 0.6))
        if rng.random() < 0.3:
            inward = edge + side * rng.uniform(0.4, 1.2)
        if item == "cones":
            num, pitch = int(rng.integers(2, 6)), float(rng.uniform(1.5, 2.6))
            for k in range(num):
                taper = side * 0.25 * k if rng.random() < 0.5 else 0.0
                if not self.road.is_blocked(s + k * pitch, s + k * pitch):
                    self._stand(
                        "traffic_cone",
                        s + k * pitch,
                        inward + taper + rng.normal(0, 0.08),
                        rng.uniform(-3, 3),
                    )
            return num * pitch + 1.0
        num, pitch = int(rng.integers(2, 6)), float(rng.uniform(2.75, 3.2))
        for k in range(num):
            if not self.road.is_blocked(s + k * pitch - 1.3, s + k * pitch + 1.3):
                self._stand(
                    "barrier",
                    s + k * pitch,
                    inward + rng.normal(0, 0.05),
                    np.pi / 2 * -side + rng.normal(0, 0.04),
                )
        return num * pitch + 1.5

    def _stream(self, direction: int) -> None:
        """Vehicles in every lane of one direction; some keep the ego vehicle's pace, some drive at their own."""
        rng, road = self.rng, self.road
        lanes = road.lanes[0 if direction > 0 else 1]
        reach = float(travelled(self.times, np.full(len(self.times), 7.0))[-1])
        for lane in range(lanes):
            path = road.centre.offset(-direction * (lane + 0.5) * road.lane_width)
            if direction < 0:
                path = path.reversed()
            pace = rng.uniform(4.0, 8.0)
            deck: list[str] = []
            s = -reach if direction < 0 else -0.3 * reach
            while s < path.length - 10.0:
                if not deck:
                    deck = [str(x) for x in rng.permutation(MOVING_DECK)]
                item = deck.pop()
                s += rng.uniform(14.0, 30.0)
                if direction > 0 and rng.random() < 0.75:
                    delay = rng.uniform(-0.8, 0.8)
                    speed = np.interp(self.times + delay, self.times, self.ego_speed)
                else:
                    speed = np.full(len(self.times), pace * rng.uniform(0.97, 1.03))
                s += self._drive(item, path, s, speed, rng.normal(0.0, 0.12))

    def _drive(self, item: str, path: Path, s0: float, speed: Array, sway: float) -> float:
        rng = self.rng
        s = s0 + travelled(self.times, speed)
        path = path.offset(sway)
        if item == "towing":
            truck, load = draw_size(rng, "truck"), draw_size(rng, "trailer")
            behind = along(self.times, path, s - (truck[1] + load[1]) / 2 - 0.6, margin=8.0)
            front = along(self.times, path, s, margin=8.0)
            if self._occupancy.is_free(behind, load[1], load[0], 0.3) and self._place(
                "truck", front, gap=0.3, static=False, size=truck
            ):
                self._place("trailer", behind, gap=0.2, static=False, size=load)
            return truck[1] + load[1] + 2.0
        rider = item in ("motorcycle", "bicycle")
        size = draw_size(rng, item, rider=rider)
        self._place(
            item, along(self.times, path, s, margin=8.0), gap=0.45, static=False, rider=rider, size=size
        )
        return size[1]

    def _cyclists(self) -> None:
        """Cyclists near the outer edge of the outer lane, both ways."""
        rng, road = self.rng, self.road
        for direction in (1, -1):
            lanes = road.lanes[0 if direction > 0 else 1]
            path = road.centre.offset(-direction * (lanes * road.lane_width - rng.uniform(0.3, 0.7)))
            path = path if direction > 0 else path.reversed()
            s = -60.0
            while s < path.length:
                s += rng.uniform(18.0, 40.0)
                name = "bicycle" if rng.random() < 0.6 else "motorcycle"
                self._drive(name, path, s, np.full(len(self.times), rng.uniform(2.5, 5.5)), 0.0)

    def _walkers(self, side: int) -> None:
        """People on the pavement; seven of ten walk."""
        rng, road = self.rng, self.road
        edge = road.right_edge if side < 0 else road.left_edge
        s = 0.0
        while s < road.centre.length:
            s += rng.exponential(14.0) + 0.8
            u = edge + side * rng.uniform(0.5, road.walk_width - 0.4)
            if rng.random() < 0.3:
                self._stand("pedestrian", s, u, rng.uniform(-np.pi, np.pi))
                continue
            direction = int(rng.choice([1, -1]))
            path = road.centre.offset(u)
            path = path if direction > 0 else path.reversed()
            start = s if direction > 0 else path.length - s
            position = start + travelled(self.times, np.full(len(self.times), rng.uniform(0.8, 1.7)))
            self._place("pedestrian", along(self.times, path, position), gap=0.15, static=False)

    def _crossing_walkers(self) -> None:
        """People who use a zebra crossing once during the scene."""
        rng, road = self.rng, self.road
        for corners in self.road.crossings[: len(road.crossing_s)]:
            for _ in range(int(rng.integers(2, 5))):
                t = rng.uniform(0.2, 0.8)
                a = corners[0] + t * (corners[3] - corners[0])
                b = corners[1] + t * (corners[2] - corners[1])
                if rng.random() < 0.5:
                    a, b = b, a
                d = (b - a) / np.linalg.norm(b - a)
                path = Path.from_points(np.linspace(a - 1.2 * d, b + 1.2 * d, 12))
                walk = rng.uniform(1.0, 1.7)
                begin = rng.uniform(-path.length / walk, self.times[-1])
                position = np.clip((self.times - begin) * walk, 0.0, path.length)
                trajectory = along(self.times, path, position, margin=0.0)
                self._place("pedestrian", trajectory, gap=0.35, static=False)

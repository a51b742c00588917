"""One scene: everything that is drawn once (road, ground, light, traffic), from a seed and the scene's place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perception.synthetic.actors import LIFT, Actor
from perception.synthetic.background import Prop, build_background, prop_shadow
from perception.synthetic.draw_list import DrawList
from perception.synthetic.ground import Ground, paint_ground
from perception.synthetic.lighting import SCHEDULE, Lighting, make_lighting
from perception.synthetic.mesh import ground_shadow
from perception.synthetic.motion import Trajectory, draw_ego_speed, drive_ego, time_grid, travelled
from perception.synthetic.names import LOCATIONS, SCENE_NAMES
from perception.synthetic.road import Road, build_road
from perception.synthetic.traffic import TrafficBuilder
from perception.utils import stable_seed

SAMPLE_PERIOD = 0.5  # seconds: key frames at 2 Hz
SLOT = 480.0  # each scene has a square of this size on its map, metres

STOP_PLAN: tuple[int, ...] = (1, 3, 5, 8)  # scenes in which the ego vehicle, and traffic with it, stops once
# (own direction, oncoming) lanes and how winding the road is, one entry per scene of names.SCENE_NAMES.
LANE_PLAN: tuple[tuple[int, int], ...] = (
    (1, 1),
    (2, 2),
    (2, 1),
    (1, 2),
    (1, 1),
    (2, 2),
    (2, 1),
    (1, 1),
    (2, 2),
    (1, 2),
)
BEND_PLAN: tuple[float, ...] = (0.0, 0.6, 0.9, 0.5, 1.0, 0.25, 0.8, 0.6, 0.9, 0.3)


@dataclass(frozen=True)
class SceneSpec:
    """What determines a scene; two equal specs give the same scene in any process.

    Attributes:
        index: place in names.SCENE_NAMES.
        seed: the world's seed.
        num_samples: number of key frames.
    """

    index: int
    seed: int
    num_samples: int

    @property
    def name(self) -> str:
        """Official name of the scene."""
        return SCENE_NAMES[self.index]

    @property
    def location(self) -> str:
        """Map that the scene lies on."""
        return tuple(LOCATIONS)[self.index % len(LOCATIONS)]

    @property
    def origin(self) -> tuple[float, float]:
        """Corner of the scene's square on its map, metres; scenes of one map lie side by side."""
        return (self.index // len(LOCATIONS)) * SLOT, 0.0

    def rng(self, *purpose: str | int) -> np.random.Generator:
        """Return a generator for one purpose, independent of all others."""
        return np.random.default_rng(
            stable_seed("synthetic", self.seed, self.num_samples, self.index, *purpose)
        )


@dataclass(frozen=True)
class Scene:
    """A scene ready to be recorded; all coordinates are relative to `spec.origin`."""

    spec: SceneSpec
    road: Road
    ground: Ground
    lighting: Lighting
    ego: Trajectory
    actors: list[Actor]
    props: list[Prop]
    draw_list: DrawList


def _draw_list(actors: list[Actor], props: list[Prop]) -> DrawList:
    """Actors first, numbered from 1, then props, which count as background."""
    meshes = [a.mesh for a in actors] + [p.mesh for p in props]
    shadows = [ground_shadow(a.size[1], a.size[0], LIFT - 0.004) for a in actors]
    shadows += [prop_shadow(p) for p in props]
    return DrawList.of(meshes, shadows, [*range(1, len(actors) + 1), *[0] * len(props)])


def build_scene(spec: SceneSpec) -> Scene:
    """Draw a scene: road, light, the ego vehicle's drive, traffic and surroundings."""
    times = time_grid((spec.num_samples - 1) * SAMPLE_PERIOD)
    speed = draw_ego_speed(spec.rng("speed"), times, stops=spec.index in STOP_PLAN)
    travel = float(travelled(times, speed)[-1])
    road = build_road(
        spec.rng("road"), travel=travel, lanes=LANE_PLAN[spec.index], bend=BEND_PLAN[spec.index]
    )
    ego = drive_ego(spec.rng("ego"), road, times, speed)
    actors = TrafficBuilder(rng=spec.rng("traffic"), road=road, times=times, ego=ego, ego_speed=speed).build()
    props = build_background(
        spec.rng("background"), road, [a.outline() for a in actors if a.conduct == "static"]
    )
    lighting = make_lighting(spec.rng("light"), SCHEDULE[spec.index])
    ground = paint_ground(spec.rng("ground"), road)
    return Scene(spec, road, ground, lighting, ego, actors, props, _draw_list(actors, props))

"""One clip: the surroundings of a few pictures that one car takes, from a seed and the clip's place in the data set."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from perception.synthetic.actors import LIFT, Actor
from perception.synthetic.background import Prop, build_background, prop_shadow
from perception.synthetic.bdd100k.furniture import Fixture, Furnisher, LightColour
from perception.synthetic.bdd100k.names import ACTOR_CLASSES, PROP_CLASSES, SEG_ID
from perception.synthetic.draw_list import DrawList
from perception.synthetic.ground import Ground, cover_ground, paint_ground
from perception.synthetic.lighting import Lighting, make_lighting
from perception.synthetic.mesh import Mesh, ground_shadow, split
from perception.synthetic.motion import Trajectory, along, draw_ego_speed, drive_ego, time_grid, travelled
from perception.synthetic.road import START_MARGIN, Road, build_road
from perception.synthetic.traffic import TrafficBuilder
from perception.synthetic.vehicles import tram
from perception.utils import stable_seed

IMAGES_PER_CLIP = 2
IMAGE_PERIOD = 4.0  # seconds from one picture to the next
TRAM_SIZE = (2.4, 22.0, 3.5)  # width, length, height, metres
TRAM_INTERVAL = 8  # one clip in so many has a tram
MAX_TRAM_BEND = 0.4  # and lies on a road on which a rigid tram fits into its lane
RAIL_GAUGE = 1.435

_LANES: tuple[tuple[int, int], ...] = ((1, 1), (1, 1), (2, 2), (2, 1), (1, 2))
# Each dozen of clips has these kinds of light, in an order of its own, so that small worlds have them all too.
_LIGHT_DECK: tuple[str, ...] = tuple(
    "noon noon noon noon overcast overcast overcast fog dusk dusk night night".split()
)
# What BDD100K calls their weather and time of day.
_LIGHT_WORDS: dict[str, tuple[str, str]] = {
    "noon": ("clear", "daytime"),
    "overcast": ("overcast", "daytime"),
    "fog": ("foggy", "daytime"),
    "dusk": ("clear", "dawn/dusk"),
    "night": ("clear", "night"),
}
# The share that is kept of each kind of actor, times the clip's own: works would otherwise crowd every street.
_KEPT: dict[str, float] = {
    "barrier": 0.3,
    "traffic_cone": 0.4,
    "construction_vehicle": 0.4,
    "trailer": 0.5,
}


@dataclass(frozen=True)
class ClipSpec:
    """What determines a clip; two equal specs give the same clip in any process.

    Attributes:
        seed: the world's seed.
        image_set: "100k" or "10k".
        split: "train" or "val".
        index: number of the clip within set and split.
    """

    seed: int
    image_set: str
    split: str
    index: int

    def rng(self, *purpose: str | int) -> np.random.Generator:
        """Return a generator for one purpose, independent of all others."""
        return np.random.default_rng(self._number(*purpose))

    @property
    def light(self) -> str:
        """Kind of light."""
        dozen, place = divmod(self.index, len(_LIGHT_DECK))
        order = replace(self, index=dozen).rng("light deck").permutation(len(_LIGHT_DECK))
        return _LIGHT_DECK[int(order[place])]

    @property
    def has_tram(self) -> bool:
        """Whether a tram runs here."""
        return (self.index - replace(self, index=0)._number("trams")) % TRAM_INTERVAL == 0

    def image_name(self, number: int) -> str:
        """Stem of the clip's picture `number`, in the form of the real names."""
        text = f"{self._number('name', number):016x}"
        return f"{text[:8]}-{text[8:]}"

    def _number(self, *purpose: str | int) -> int:
        return stable_seed("bdd100k", self.seed, self.image_set, self.split, self.index, *purpose)


@dataclass(frozen=True)
class StreetObject:
    """One thing of a clip, with an id of its own in the rendered pictures.

    Attributes:
        seg_class: value of its pixels in a mask.
        category: box category; None: it gets no box.
        mesh: shape in the object frame.
        actor: whom it moves with, or None.
        pose: (x, y, yaw), global frame, of what does not move.
        light: colour that a traffic light shows.
        is_front_only: seen from behind it is of no class.
    """

    seg_class: int
    category: str | None
    mesh: Mesh
    actor: Actor | None = None
    pose: tuple[float, float, float] = (0.0, 0.0, 0.0)
    light: LightColour = "NA"
    is_front_only: bool = False

    def at(self, t: float) -> tuple[float, float, float, float]:
        """Return x, y, z, yaw at time `t`, global frame."""
        if self.actor is None:
            return self.pose[0], self.pose[1], 0.0, self.pose[2]
        x, y, yaw = self.actor.trajectory.at(t)
        return x, y, LIFT, yaw


@dataclass(frozen=True)
class DashCamera:
    """A camera behind a windscreen, as each of BDD100K's cars has its own.

    Attributes:
        focal: focal length, in image widths.
        centre: principal point, in image widths and heights.
        position: (x, y, z) in the ego frame, metres.
        angles: yaw (to the left), pitch (downwards), roll, radians.
    """

    focal: float
    centre: tuple[float, float]
    position: tuple[float, float, float]
    angles: tuple[float, float, float]

    def cam2ego(self) -> NDArray[np.float64]:
        """Return the (3, 3) rotation from camera (x right, y down, z forward) to ego axes."""
        yaw, pitch, roll = self.angles
        cos, sin = np.cos, np.sin
        turn = np.array([[cos(yaw), -sin(yaw), 0], [sin(yaw), cos(yaw), 0], [0, 0, 1]])
        dip = np.array([[cos(pitch), 0, sin(pitch)], [0, 1, 0], [-sin(pitch), 0, cos(pitch)]])
        tilt = np.array([[1, 0, 0], [0, cos(roll), -sin(roll)], [0, sin(roll), cos(roll)]])
        axes = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
        return np.asarray(turn @ dip @ tilt @ axes)


@dataclass(frozen=True)
class Clip:
    """A clip ready to be photographed.

    Attributes:
        spec: what it was made from.
        road: its road.
        ground: painted ground.
        ground_cover: (rows, columns, 2) uint8, how much of each of its texels is carriageway, and paved.
        lighting: the light.
        attributes: weather, time of day and scene, as BDD100K writes them.
        ego: the car's drive.
        camera: its camera.
        objects: everything that stands on the ground; object k has the id k + 1.
        draw_list: their meshes.
    """

    spec: ClipSpec
    road: Road
    ground: Ground
    ground_cover: NDArray[np.uint8]
    lighting: Lighting
    attributes: dict[str, str]
    ego: Trajectory
    camera: DashCamera
    objects: list[StreetObject]
    draw_list: DrawList


def build_clip(spec: ClipSpec) -> Clip:
    """Draw a clip: road, light, the car's drive and camera, traffic and surroundings."""
    plan = spec.rng("plan")
    times = time_grid((IMAGES_PER_CLIP - 1) * IMAGE_PERIOD)
    speed = draw_ego_speed(spec.rng("speed"), times, stops=bool(plan.random() < 0.3))
    lanes = _LANES[int(plan.integers(len(_LANES)))]
    bend = float(plan.uniform(0.0, MAX_TRAM_BEND if spec.has_tram else 1.0))
    road = build_road(spec.rng("road"), travel=float(travelled(times, speed)[-1]), lanes=lanes, bend=bend)
    ego = drive_ego(spec.rng("ego"), road, times, speed)
    builder = TrafficBuilder(rng=spec.rng("traffic"), road=road, times=times, ego=ego, ego_speed=speed)
    if spec.has_tram:
        trams = spec.rng("tram")
        # Another lane, way or distance, should the car be in its way.
        any(builder.add(_tram(trams, road, times, speed), gap=0.3) for _ in range(8))
    share = float(plan.uniform(0.45, 1.0))
    actors = [
        a for a in builder.build() if a.name == "train" or plan.random() < share * _KEPT.get(a.name, 1.0)
    ]
    standing = [a.outline() for a in actors if a.conduct == "static"]
    furnisher = Furnisher(rng=spec.rng("furniture"), road=road, keep_out=standing)
    fixtures, edges = furnisher.fixtures(), furnisher.edges()
    props = [*build_background(spec.rng("background"), road, standing), *edges]
    objects, shadows = _objects(actors, fixtures, props)
    lighting = _lighting(spec.rng("light"), spec.light)
    weather, time_of_day = _LIGHT_WORDS[spec.light]
    attributes = {
        "weather": weather,
        "timeofday": time_of_day,
        "scene": "residential" if lanes == (1, 1) else "city street",
    }
    ground = paint_ground(spec.rng("ground"), road, rails=_rails(road) if spec.has_tram else ())
    draw_list = DrawList.of([o.mesh for o in objects], shadows, range(1, len(objects) + 1))
    camera = _camera(spec.rng("camera"))
    return Clip(spec, road, ground, cover_ground(road), lighting, attributes, ego, camera, objects, draw_list)


def _objects(
    actors: list[Actor], fixtures: list[Fixture], props: list[Prop]
) -> tuple[list[StreetObject], list[Mesh | None]]:
    """Everything with an id, and its shadow; a cycle and its rider are two."""
    objects: list[StreetObject] = []
    shadows: list[Mesh | None] = []
    for actor in actors:
        seg_class, category = ACTOR_CLASSES[actor.name]
        mesh, rider = split(actor.mesh, actor.num_rider_triangles)
        objects.append(StreetObject(SEG_ID[seg_class], category, mesh, actor))
        shadows.append(ground_shadow(actor.size[1], actor.size[0], LIFT - 0.004))
        if actor.num_rider_triangles:
            objects.append(StreetObject(SEG_ID["rider"], "rider", rider, actor))
            shadows.append(None)
    for fixture in fixtures:
        objects.append(
            StreetObject(
                SEG_ID[fixture.seg_class],
                fixture.category,
                fixture.mesh,
                pose=fixture.pose,
                light=fixture.light,
                is_front_only=fixture.is_front_only,
            )
        )
        shadows.append(ground_shadow(0.1, 0.1, -0.004) if fixture.category is None else None)
    for prop in props:
        objects.append(StreetObject(SEG_ID[PROP_CLASSES[prop.kind]], None, prop.mesh, pose=prop.pose))
        shadows.append(prop_shadow(prop))
    return objects, shadows


def _lighting(rng: np.random.Generator, kind: str) -> Lighting:
    if kind != "fog":
        return make_lighting(rng, kind)
    return replace(make_lighting(rng, "overcast"), name=kind, haze_distance=float(rng.uniform(45.0, 80.0)))


def _camera(rng: np.random.Generator) -> DashCamera:
    return DashCamera(
        focal=float(rng.uniform(0.72, 0.95)),
        centre=(float(rng.uniform(0.48, 0.52)), float(rng.uniform(0.46, 0.53))),
        position=(1.6, float(rng.uniform(-0.25, 0.25)), float(rng.uniform(1.15, 1.65))),
        angles=(
            float(np.deg2rad(rng.uniform(-2.5, 2.5))),
            float(np.deg2rad(rng.uniform(-1.5, 3.0))),
            float(np.deg2rad(rng.normal(0.0, 0.5))),
        ),
    )


def _tram(
    rng: np.random.Generator, road: Road, times: NDArray[np.float64], ego_speed: NDArray[np.float64]
) -> Actor:
    """A tram before the car at its pace, or one that comes towards it."""
    width, length, height = TRAM_SIZE
    if rng.random() < 0.5:
        path = road.centre.offset(-(rng.integers(road.lanes[0]) + 0.5) * road.lane_width)
        s = START_MARGIN + length / 2 + rng.uniform(12.0, 40.0) + travelled(times, ego_speed)
    else:
        path = road.centre.offset((rng.integers(road.lanes[1]) + 0.5) * road.lane_width).reversed()
        meeting = path.length - START_MARGIN - rng.uniform(30.0, 70.0)
        s = meeting + travelled(times, np.full(len(times), rng.uniform(4.0, 8.0)))
    mesh = tram(rng, length, width, height)
    np.clip(mesh.vertices, [-length / 2, -width / 2, 0.0], [length / 2, width / 2, height], out=mesh.vertices)
    trajectory = along(times, path, s, margin=length / 2)
    return Actor("train", "", TRAM_SIZE, trajectory, "mover", False, mesh)


def _rails(road: Road) -> list[NDArray[np.float64]]:
    """Two rails in the middle of every lane."""
    lanes = [-(k + 0.5) for k in range(road.lanes[0])] + [k + 0.5 for k in range(road.lanes[1])]
    return [
        road.centre.offset(lane * road.lane_width + side * RAIL_GAUGE / 2).xy
        for lane in lanes
        for side in (-1, 1)
    ]

"""Annotated objects: class, size, mesh, motion and the attribute that follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from shapely.geometry import Polygon

from perception.synthetic import small_objects, vehicles
from perception.synthetic.mesh import Mesh, join
from perception.synthetic.motion import Trajectory
from perception.synthetic.names import CLASS_SIZES, CYCLE_CLASSES, VEHICLE_CLASSES

LIFT = 0.03  # boxes begin this far above the ground, so that ground points lie outside, metres

Conduct = Literal["static", "mover"]


@dataclass(frozen=True)
class Actor:
    """One object of a scene.

    Attributes:
        name: detection class.
        category: nuScenes category.
        size: (width, length, height), metres.
        trajectory: pose of the bottom's middle over time.
        conduct: "static" (parked, standing) or "mover" (moves, at least at times).
        rider: whether a cycle is ridden.
        mesh: shape in the object frame, a rider included.
        num_rider_triangles: how many of the mesh's last triangles are the rider's.
    """

    name: str
    category: str
    size: tuple[float, float, float]
    trajectory: Trajectory
    conduct: Conduct
    rider: bool
    mesh: Mesh
    num_rider_triangles: int = 0

    def attribute(self, t: float) -> str:
        """Return the nuScenes attribute at time `t`, '' for cones and barriers."""
        moving = self.trajectory.speed(t) > 0.3
        if self.name in VEHICLE_CLASSES:
            return (
                "vehicle.moving"
                if moving
                else "vehicle.parked"
                if self.conduct == "static"
                else "vehicle.stopped"
            )
        if self.name in CYCLE_CLASSES:
            return "cycle.with_rider" if self.rider else "cycle.without_rider"
        if self.name == "pedestrian":
            return "pedestrian.moving" if moving else "pedestrian.standing"
        return ""

    def outline(self) -> Polygon:
        """Return the footprint at time 0, metres."""
        x, y, yaw = self.trajectory.at(0.0)
        w, length, _ = self.size
        corners = np.array([(length, w), (-length, w), (-length, -w), (length, -w)]) / 2
        return Polygon(corners @ np.array([[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]]) + [x, y])


def draw_size(rng: np.random.Generator, name: str, *, rider: bool = False) -> tuple[float, float, float]:
    """Draw (width, length, height) in metres, cut off at two standard deviations."""
    width, length, height, spread = CLASS_SIZES[name]
    common, *own = np.clip(rng.standard_normal(4), -2.0, 2.0) * spread
    w, length, h = (
        v * (1 + 0.6 * common + 0.5 * o) for v, o in zip((width, length, height), own, strict=True)
    )
    if name in CYCLE_CLASSES:
        h = rng.uniform(1.65, 1.85) if rider else h * (0.85 if name == "bicycle" else 0.82)
    return round(float(w), 3), round(float(length), 3), round(float(h), 3)


def draw_category(rng: np.random.Generator, name: str) -> str:
    """Draw the nuScenes category of an object of a detection class."""
    if name == "pedestrian":
        kinds = (
            "adult",
            "adult",
            "adult",
            "adult",
            "adult",
            "child",
            "construction_worker",
            "police_officer",
        )
        return "human.pedestrian." + kinds[int(rng.integers(len(kinds)))]
    if name == "bus":
        return "vehicle.bus.rigid" if rng.random() < 0.8 else "vehicle.bus.bendy"
    return {
        "construction_vehicle": "vehicle.construction",
        "barrier": "movable_object.barrier",
        "traffic_cone": "movable_object.trafficcone",
    }.get(name, f"vehicle.{name}")


def make_actor(
    rng: np.random.Generator,
    name: str,
    size: tuple[float, float, float],
    trajectory: Trajectory,
    *,
    conduct: Conduct,
    rider: bool = False,
) -> Actor:
    """Build an actor and its mesh."""
    w, length, h = size
    category = draw_category(rng, name)
    num_rider_triangles = 0
    if name == "pedestrian":
        if category.endswith("child"):
            size = (round(w * 0.8, 3), round(length * 0.8, 3), round(h * 0.72, 3))
            w, length, h = size
        mesh = small_objects.pedestrian(rng, length, w, h, walking=conduct == "mover")
    elif name in CYCLE_CLASSES:
        parts = getattr(small_objects, name)(rng, length, w, h, rider=rider)
        mesh, num_rider_triangles = join(parts), sum(len(part.triangles) for part in parts[1:])
    else:
        builder = getattr(vehicles, name, None) or getattr(small_objects, name)
        mesh = builder(rng, length, w, h)
    np.clip(mesh.vertices, [-length / 2, -w / 2, 0.0], [length / 2, w / 2, h], out=mesh.vertices)
    return Actor(name, category, size, trajectory, conduct, rider, mesh, num_rider_triangles)

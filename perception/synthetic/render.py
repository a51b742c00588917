"""Pictures of a scene at one moment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perception.synthetic import raster
from perception.synthetic.actors import LIFT
from perception.synthetic.ground import CELL
from perception.synthetic.rig import IMAGE_HEIGHT, IMAGE_WIDTH, Camera, ego2global
from perception.synthetic.scene import Scene

ACTOR_RANGE = 120.0  # metres; what is farther from the camera is not drawn
PROP_RANGE = 180.0


@dataclass(frozen=True)
class Picture:
    """One rendered image.

    Attributes:
        image: (H, W, 3) uint8 BGR.
        ids: (H, W) int32: number of the actor seen (its index + 1), 0 for background, -1 for a shadow.
        visible: (A + 1,) pixels seen of each actor, by number.
        total: (A + 1,) pixels that each actor would fill if nothing stood before it.
        inverse_depth: (H, W) float32, 1 / metres along the camera's axis, 0 where no object is.
    """

    image: NDArray[np.uint8]
    ids: NDArray[np.int32]
    visible: NDArray[np.int64]
    total: NDArray[np.int64]
    inverse_depth: NDArray[np.float32]


def render(scene: Scene, camera: Camera, t: float, *, noise_seed: int = 0) -> Picture:
    """Render one camera at time `t` (seconds since the scene's first sample)."""
    x, y, yaw = scene.ego.at(t)
    cam2world = ego2global(x, y, yaw) @ camera.cam2ego()
    rotation = np.ascontiguousarray(cam2world[:3, :3])
    position = np.ascontiguousarray(cam2world[:3, 3])
    matrix = camera.intrinsic()
    intrinsic = np.array([matrix[0, 0], matrix[0, 2], matrix[1, 2]])

    num_actors = len(scene.actors)
    poses = np.zeros((num_actors + len(scene.props), 4))
    shown = np.ones(len(poses), dtype=bool)
    for k, actor in enumerate(scene.actors):
        px, py, pyaw = actor.trajectory.at(t)
        poses[k] = px, py, LIFT, pyaw
        shown[k] = actor.trajectory.is_active(t)
    for k, prop in enumerate(scene.props, start=num_actors):
        poses[k] = prop.pose[0], prop.pose[1], 0.0, prop.pose[2]
    distance = np.hypot(poses[:, 0] - position[0], poses[:, 1] - position[1])
    reach = np.where(np.arange(len(poses)) < num_actors, ACTOR_RANGE, PROP_RANGE)
    order = np.flatnonzero(shown & (distance < reach))
    order = order[np.argsort(distance[order], kind="stable")]

    inverse, colour, ids, stamp = raster.new_buffers(IMAGE_HEIGHT, IMAGE_WIDTH)
    totals = np.zeros(num_actors + 1, dtype=np.int64)
    visible = np.zeros(num_actors + 1, dtype=np.int64)
    draw, light, ground = scene.draw_list, scene.lighting, scene.ground
    raster.draw_objects(
        draw.vertices,
        draw.vertex_start,
        draw.triangles,
        draw.triangle_start,
        draw.colours,
        draw.glow,
        draw.shadow_start,
        poses,
        draw.radii,
        draw.ids,
        order,
        np.ascontiguousarray(rotation.T),
        position,
        intrinsic,
        light.sun,
        light.ambient,
        light.diffuse,
        inverse,
        colour,
        ids,
        stamp,
        totals,
    )
    raster.count_ids(ids, visible)
    image = np.empty((IMAGE_HEIGHT, IMAGE_WIDTH, 3), dtype=np.uint8)
    raster.shade(
        ground.texels,
        ground.offsets,
        ground.shapes,
        np.array(ground.origin),
        CELL,
        ground.base,
        rotation,
        position,
        intrinsic,
        light.ambient,
        light.diffuse,
        light.sun,
        light.sky_low,
        light.sky_high,
        light.haze_distance,
        light.shadow,
        light.noise,
        noise_seed & 0x7FFFFFFF,
        inverse,
        colour,
        ids,
        image,
    )
    return Picture(image, ids, visible, totals, inverse)

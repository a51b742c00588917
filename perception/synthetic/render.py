"""Pictures of a scene at one moment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perception.synthetic import raster
from perception.synthetic.actors import LIFT
from perception.synthetic.draw_list import DrawList
from perception.synthetic.ground import CELL, Ground
from perception.synthetic.lighting import Lighting
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


@dataclass(frozen=True)
class View:
    """A camera at one moment.

    Attributes:
        rotation: (3, 3) camera to global.
        position: (3,) in the global frame, metres.
        intrinsic: (3,) focal length, cx, cy, pixels.
        shape: (height, width) of the image.
    """

    rotation: NDArray[np.float64]
    position: NDArray[np.float64]
    intrinsic: NDArray[np.float64]
    shape: tuple[int, int]


@dataclass(frozen=True)
class Planes:
    """What is drawn: `image`, `ids`, `inverse_depth` and `total` as in `Picture`, `total` by id."""

    image: NDArray[np.uint8]
    ids: NDArray[np.int32]
    total: NDArray[np.int64]
    inverse_depth: NDArray[np.float32]


def draw_view(
    view: View,
    draw: DrawList,
    poses: NDArray[np.float64],
    order: NDArray[np.int64],
    ground: Ground,
    light: Lighting,
    *,
    num_ids: int,
    noise_seed: int = 0,
) -> Planes:
    """Draw objects on the ground as a camera sees them.

    Args:
        view: the camera.
        draw: meshes of O objects.
        poses: (O, 4) x, y, z, yaw in the global frame.
        order: objects to draw, near ones first (that is faster).
        ground: the painted ground.
        light: the light.
        num_ids: largest number in `draw.ids`.
        noise_seed: of the image noise.
    """
    inverse, colour, ids, stamp = raster.new_buffers(*view.shape)
    total = np.zeros(num_ids + 1, dtype=np.int64)
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
        np.ascontiguousarray(view.rotation.T),
        view.position,
        view.intrinsic,
        light.sun,
        light.ambient,
        light.diffuse,
        inverse,
        colour,
        ids,
        stamp,
        total,
    )
    image = np.empty((*view.shape, 3), dtype=np.uint8)
    raster.shade(
        ground.texels,
        ground.offsets,
        ground.shapes,
        np.array(ground.origin),
        CELL,
        ground.base,
        view.rotation,
        view.position,
        view.intrinsic,
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
    return Planes(image, ids, total, inverse)


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

    view = View(rotation, position, intrinsic, (IMAGE_HEIGHT, IMAGE_WIDTH))
    planes = draw_view(
        view,
        scene.draw_list,
        poses,
        order,
        scene.ground,
        scene.lighting,
        num_ids=num_actors,
        noise_seed=noise_seed,
    )
    visible = np.zeros(num_actors + 1, dtype=np.int64)
    raster.count_ids(planes.ids, visible)
    return Picture(planes.image, planes.ids, visible, planes.total, planes.inverse_depth)

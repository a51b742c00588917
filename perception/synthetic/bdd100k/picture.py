"""One picture of a clip with its mask and its boxes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perception.structures import IGNORE_SEG
from perception.synthetic import raster_labels
from perception.synthetic.bdd100k.clip import IMAGE_PERIOD, Clip, StreetObject
from perception.synthetic.bdd100k.names import SEG_ID
from perception.synthetic.ground import CELL
from perception.synthetic.raster import NEAR
from perception.synthetic.render import ACTOR_RANGE, PROP_RANGE, View, draw_view
from perception.synthetic.rig import ego2global

MIN_PIXELS = 12  # an object of which fewer are seen gets no box
MIN_SIDE = 3  # nor one whose box would be narrower or lower than this, pixels
MIN_SEEN = 0.08  # nor one of which a smaller share is seen
OCCLUDED_BELOW = 0.9  # seen share below which an object counts as occluded


@dataclass(frozen=True)
class LabelledPicture:
    """A rendered picture and what it shows.

    Attributes:
        image: (H, W, 3) uint8 BGR.
        mask: (H, W) uint8, segmentation class or 255.
        ids: (H, W) int32, the id of the object seen (its place in `Clip.objects` + 1), 0 or −1 for the ground and the
            sky.
        labels: boxes as Scalabel writes them, by id.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    ids: NDArray[np.int32]
    labels: list[dict[str, Any]]


def take_picture(clip: Clip, number: int, size: tuple[int, int]) -> LabelledPicture:
    """Render picture `number` of a clip.

    Args:
        clip: the clip.
        number: which of its pictures; they lie `IMAGE_PERIOD` seconds apart.
        size: (width, height), pixels.
    """
    t = number * IMAGE_PERIOD
    view = _view(clip, t, size)
    poses = np.array([o.at(t) for o in clip.objects])
    distance = np.hypot(poses[:, 0] - view.position[0], poses[:, 1] - view.position[1])
    is_shown = np.array([o.actor is None or o.actor.trajectory.is_active(t) for o in clip.objects])
    reach = np.array([PROP_RANGE if o.actor is None else ACTOR_RANGE for o in clip.objects])
    order = np.flatnonzero(is_shown & (distance < reach))
    order = order[np.argsort(distance[order], kind="stable")]
    num_ids = len(clip.objects)
    planes = draw_view(
        view,
        clip.draw_list,
        poses,
        order,
        clip.ground,
        clip.lighting,
        num_ids=num_ids,
        noise_seed=int(clip.spec.rng("noise", number).integers(2**31)),
    )
    height, width = view.shape
    counts = np.zeros(num_ids + 1, dtype=np.int64)
    extents = np.tile(np.array([width, height, -1, -1], dtype=np.int32), (num_ids + 1, 1))
    raster_labels.measure_objects(planes.ids, counts, extents)

    is_seen_from_behind = np.array(
        [
            o.is_front_only and _is_behind(pose, view.position)
            for o, pose in zip(clip.objects, poses, strict=True)
        ]
    )
    class_of = np.array([IGNORE_SEG, *(o.seg_class for o in clip.objects)], dtype=np.uint8)
    class_of[1:][is_seen_from_behind] = IGNORE_SEG
    mask = np.empty(view.shape, dtype=np.uint8)
    raster_labels.label_pixels(
        planes.ids,
        planes.inverse_depth,
        class_of,
        clip.ground_cover,
        np.array(clip.ground.origin),
        CELL,
        view.rotation,
        view.position,
        view.intrinsic,
        SEG_ID["road"],
        SEG_ID["sidewalk"],
        SEG_ID["terrain"],
        SEG_ID["sky"],
        mask,
    )
    labels = []
    for k in np.flatnonzero(counts[1:]).tolist():
        item = clip.objects[k]
        if item.category is None or is_seen_from_behind[k]:
            continue
        visible, total = int(counts[k + 1]), int(planes.total[k + 1])
        x1, y1, x2, y2 = (int(edge) for edge in extents[k + 1])
        if visible < max(MIN_PIXELS, MIN_SEEN * total) or min(x2 - x1, y2 - y1) + 1 < MIN_SIDE:
            continue
        labels.append(
            {
                "id": f"{clip.spec.image_name(number)}-{k:03d}",
                "category": item.category,
                "attributes": {
                    "occluded": visible < OCCLUDED_BELOW * total,
                    "truncated": _is_truncated(item, poses[k], view),
                    "trafficLightColor": "NA" if _is_behind(poses[k], view.position) else item.light,
                },
                # Scalabel's boxes end with the last pixel inside.
                "box2d": {"x1": float(x1), "y1": float(y1), "x2": float(x2), "y2": float(y2)},
            }
        )
    return LabelledPicture(planes.image, mask, planes.ids, labels)


def _view(clip: Clip, t: float, size: tuple[int, int]) -> View:
    width, height = size
    car = ego2global(*clip.ego.at(t))
    camera = clip.camera
    rotation = car[:3, :3] @ camera.cam2ego()
    position = car[:3, :3] @ np.array(camera.position) + car[:3, 3]
    intrinsic = np.array([camera.focal * width, camera.centre[0] * width, camera.centre[1] * height])
    return View(np.ascontiguousarray(rotation), position, intrinsic, (height, width))


def _is_behind(pose: NDArray[np.float64], position: NDArray[np.float64]) -> bool:
    """Whether an object turns its back to the camera."""
    to_camera = position[:2] - pose[:2]
    return bool(np.cos(pose[3]) * to_camera[0] + np.sin(pose[3]) * to_camera[1] <= 0)


def _is_truncated(item: StreetObject, pose: NDArray[np.float64], view: View) -> bool:
    """Whether a part of an object lies outside the picture."""
    x, y, z, yaw = pose
    local = item.mesh.vertices[np.unique(item.mesh.triangles)]
    cos, sin = np.cos(yaw), np.sin(yaw)
    placed = local @ np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]]) + [x, y, z]
    in_camera = (placed - view.position) @ view.rotation
    if (in_camera[:, 2] < NEAR).any():
        return True
    focal, *centre = view.intrinsic
    pixels = focal * in_camera[:, :2] / in_camera[:, 2:] + centre
    height, width = view.shape
    return bool(((pixels < -0.5) | (pixels > np.array([width, height]) + 0.5)).any())

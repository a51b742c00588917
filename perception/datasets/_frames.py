"""From an entry of the index to the arrays that the transforms work on."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from perception.structures import CAMERA_NAMES, compose_lidar2img, ego_motion, upstream_ego_motion
from perception.utils import DataError


def frame_fields(
    info: Mapping[str, Any],
    prev_info: Mapping[str, Any] | None,
    *,
    data_root: str,
    upstream_can_bus: bool = False,
) -> dict[str, Any]:
    """One frame of the queue.

    Args:
        info: entry of the index.
        prev_info: entry of the frame that its motion is measured against; None where there is none.
        data_root: the nuScenes root.
        upstream_can_bus: the motion is `upstream_ego_motion`.

    Returns:
        sample_token, img_paths {camera: path}, img_sizes {camera: (width, height) or None}, lidar2img (N, 4, 4) float64
        in pixels of the stored images, ego_motion (18,) float64, has_prev.

    Raises:
        DataError: the entry lacks a camera or a pose, one of its matrices is not finite (the model would take all
            that such a camera sees for unseen), or its CAN bus values have another form.
    """
    token = info.get("token", "")
    images = _get(info, "images", token)
    missing = [camera for camera in CAMERA_NAMES if camera not in images]
    if missing:
        raise DataError(
            f"camera {', '.join(missing)} is not in the index; build it again with `perception data prepare`.",
            sample_token=token,
        )
    ego2global, lidar2ego = _poses(info)
    previous = None if prev_info is None else _poses(prev_info)[0]
    can = _can_bus(info)
    motion = (
        upstream_ego_motion(previous, ego2global, can)
        if upstream_can_bus
        else ego_motion(previous, ego2global, lidar2ego, can)
    )
    return {
        "sample_token": token,
        "img_paths": {camera: os.path.join(data_root, images[camera]["img_path"]) for camera in CAMERA_NAMES},
        "img_sizes": {camera: _image_size(images[camera]) for camera in CAMERA_NAMES},
        "lidar2img": np.stack([_lidar2img(images[camera], camera, token) for camera in CAMERA_NAMES]),
        "ego_motion": motion,
        "has_prev": prev_info is not None,
    }


def current_frame_fields(info: Mapping[str, Any], *, data_root: str) -> dict[str, Any]:
    """Fields of the current sample; those that an index of another origin lacks get defaults."""
    ego2global, lidar2ego = _poses(info)
    token = info.get("token", "")
    return {
        "sample_token": token,
        "prev_token": info.get("prev", ""),
        "scene_token": info.get("scene_token") or token,
        "scene_name": info.get("scene_name", ""),
        "frame_idx": info.get("frame_idx", 0),
        "timestamp": info.get("timestamp", 0.0),
        "map_location": info.get("map_location", ""),
        "ego2global": ego2global,
        "lidar2ego": lidar2ego,
        "lidar_path": os.path.join(data_root, info.get("lidar_points", {}).get("lidar_path", "")),
        "data_root": data_root,
    }


def ground_truth(
    info: Mapping[str, Any], *, label_map: Mapping[int, int], use_only_valid: bool
) -> dict[str, np.ndarray]:
    """Boxes of the current sample.

    Args:
        info: entry of the index.
        label_map: label in the index → label of this dataset; other boxes are dropped.
        use_only_valid: drop boxes without LiDAR and radar points.

    Returns:
        gt_bboxes_3d: (n, 9) float64, bottom-centre boxes in the LiDAR frame, velocity NaN where unknown.
        gt_labels_3d: (n,) int64.
    """
    boxes, labels = [], []
    for instance in info.get("instances", ()):
        label = label_map.get(instance["bbox_label_3d"])
        if label is None or (use_only_valid and not _is_valid(instance)):
            continue
        x, y, z, length, width, height, yaw = instance["bbox_3d"]
        velocity = instance.get("velocity") or (np.nan, np.nan)
        boxes.append((x, y, z - height / 2, length, width, height, yaw, *velocity))
        labels.append(label)
    return {
        "gt_bboxes_3d": np.array(boxes, dtype=np.float64).reshape(-1, 9),
        "gt_labels_3d": np.array(labels, dtype=np.int64),
    }


def _is_valid(instance: Mapping[str, Any]) -> bool:
    if "num_lidar_pts" in instance:
        return instance["num_lidar_pts"] + instance.get("num_radar_pts", 0) > 0
    return instance.get("bbox_3d_isvalid", True)


def _lidar2img(image: Mapping[str, Any], camera: str, token: str) -> np.ndarray:
    cam2img, lidar2cam = (
        _finite(_get(image, key, token), f"{key} of {camera}", "lidar2img", token)
        for key in ("cam2img", "lidar2cam")
    )
    return compose_lidar2img(cam2img, lidar2cam)


def _poses(info: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    token = info.get("token", "")
    ego2global = _finite(_get(info, "ego2global", token), "ego2global", "ego_motion", token)
    lidar2ego = _get(_get(info, "lidar_points", token), "lidar2ego", token)
    return ego2global, _finite(lidar2ego, "lidar_points.lidar2ego", "ego_motion", token)


def _finite(values: Any, key: str, result: str, token: str) -> np.ndarray:
    matrix = np.array(values, dtype=np.float64)
    if not np.isfinite(matrix).all():
        raise DataError(
            f"{key} in the index's entry is not finite, {matrix.tolist()}, so there is no {result}; repair the table "
            "calibrated_sensor or ego_pose and build the index again with `perception data prepare`.",
            sample_token=token,
        )
    return matrix


def _get(mapping: Mapping[str, Any], key: str, token: str) -> Any:
    if key not in mapping:
        raise DataError(
            f"the index's entry has no {key!r}; build it again with `perception data prepare`.",
            sample_token=token,
        )
    return mapping[key]


def _can_bus(info: Mapping[str, Any]) -> np.ndarray | None:
    """Acceleration, rotation rate and velocity, (9,); those of upstream's 18 values where an index has these."""
    if info.get("can_bus") is None:
        return None
    try:
        can = np.array(info["can_bus"], dtype=np.float64)
    except (TypeError, ValueError):
        can = np.zeros(0)
    if can.shape == (18,):  # translation, quaternion, then ours, then two angles
        can = can[7:16]
    if can.shape != (9,) or not np.isfinite(can).all():
        raise DataError(
            "can_bus must be 9 finite numbers (acceleration, rotation rate, velocity) or upstream's 18, got "
            f"{info['can_bus']}; build the index again with `perception data prepare`.",
            sample_token=info.get("token", ""),
        )
    return can


def _image_size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    return (image["width"], image["height"]) if "width" in image and "height" in image else None

"""The 13 tables of a nuScenes database."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from perception.synthetic.names import ATTRIBUTES, CATEGORIES, LOCATIONS, VISIBILITY
from perception.synthetic.recorder import Annotation, Sample, log_name
from perception.synthetic.rig import (
    CAMERAS,
    IMAGE_HEIGHT,
    IMAGE_WIDTH,
    LIDAR_ROTATION,
    LIDAR_TRANSLATION,
    yaw_quaternion,
)
from perception.synthetic.scene import SceneSpec

Row = dict[str, Any]
TABLE_NAMES: tuple[str, ...] = (
    "category",
    "attribute",
    "visibility",
    "instance",
    "sensor",
    "calibrated_sensor",
    "ego_pose",
    "log",
    "scene",
    "sample",
    "sample_data",
    "sample_annotation",
    "map",
)


@dataclass(frozen=True)
class RecordedScene:
    """What a scene leaves behind for the tables: its spec, its actors' (category, size) and its samples in order."""

    spec: SceneSpec
    actors: list[tuple[str, tuple[float, float, float]]]
    samples: list[Sample]
    description: str = field(default="")


def make_token(*parts: int | str) -> str:
    """Return a 32-digit token, the same for the same parts everywhere."""
    return hashlib.md5("/".join(map(str, parts)).encode(), usedforsecurity=False).hexdigest()


def mask_filename(location: str) -> str:
    """Path of a map's semantic prior, relative to the root."""
    return f"maps/{LOCATIONS[location]}.png"


def _round(values: tuple[float, ...] | list[float], digits: int = 9) -> list[float]:
    return [round(float(v), digits) for v in values]


def _chain(rows: list[Row]) -> None:
    for before, after in zip(rows, rows[1:], strict=False):
        before["next"], after["prev"] = after["token"], before["token"]


def _global(spec: SceneSpec, position: tuple[float, ...]) -> list[float]:
    ox, oy = spec.origin
    return _round([position[0] + ox, position[1] + oy, *position[2:]], 6)


def build_tables(scenes: list[RecordedScene]) -> dict[str, list[Row]]:
    """Build all tables from the recorded scenes.

    Returns:
        {table name: rows}, JSON-able, in a fixed order.
    """
    tables: dict[str, list[Row]] = {name: [] for name in TABLE_NAMES}
    tables["category"] = [
        {"token": make_token("category", n), "name": n, "description": ""} for n in CATEGORIES
    ]
    tables["attribute"] = [
        {"token": make_token("attribute", n), "name": n, "description": ""} for n in ATTRIBUTES
    ]
    tables["visibility"] = [
        {"token": k, "level": level, "description": text} for k, (level, text) in VISIBILITY.items()
    ]
    channels = [(c.name, "camera") for c in CAMERAS] + [("LIDAR_TOP", "lidar")]
    tables["sensor"] = [{"token": make_token("sensor", c), "channel": c, "modality": m} for c, m in channels]
    logs: dict[str, list[str]] = {}
    for scene in scenes:
        log_token = make_token("log", log_name(scene.spec), scene.spec.num_samples)
        logs.setdefault(scene.spec.location, []).append(log_token)
        tables["log"].append(
            {
                "token": log_token,
                "logfile": log_name(scene.spec),
                "vehicle": "synthetic",
                "date_captured": "2018-06-26",
                "location": scene.spec.location,
            }
        )
        _add_scene(tables, scene, log_token)
    tables["map"] = [
        {
            "token": make_token("map", location),
            "log_tokens": tokens,
            "category": "semantic_prior",
            "filename": mask_filename(location),
        }
        for location, tokens in logs.items()
    ]
    return tables


def nearly_seen(seen: set[int], index: int) -> bool:
    """Whether an object is seen in a sample or a neighbouring one; others are not annotated.

    The neighbours are kept so that the velocity of everything seen is defined (the devkit takes it from them).
    """
    return not seen.isdisjoint((index - 1, index, index + 1))


def _add_calibration(tables: dict[str, list[Row]], key: tuple[int | str, ...]) -> dict[str, str]:
    tokens = {}
    for c in CAMERAS:
        tokens[c.name] = make_token("calibrated_sensor", *key, c.name)
        tables["calibrated_sensor"].append(
            {
                "token": tokens[c.name],
                "sensor_token": make_token("sensor", c.name),
                "translation": list(c.translation),
                "rotation": list(c.rotation),
                "camera_intrinsic": c.intrinsic().tolist(),
            }
        )
    tokens["LIDAR_TOP"] = make_token("calibrated_sensor", *key, "LIDAR_TOP")
    tables["calibrated_sensor"].append(
        {
            "token": tokens["LIDAR_TOP"],
            "sensor_token": make_token("sensor", "LIDAR_TOP"),
            "translation": list(LIDAR_TRANSLATION),
            "rotation": list(LIDAR_ROTATION),
            "camera_intrinsic": [],
        }
    )
    return tokens


def _add_scene(tables: dict[str, list[Row]], scene: RecordedScene, log_token: str) -> None:
    spec = scene.spec
    key = (spec.seed, spec.num_samples, spec.name)
    calibrations = _add_calibration(tables, key)
    scene_token = make_token("scene", *key)
    samples: list[Row] = []
    data: dict[str, list[Row]] = {channel: [] for channel in calibrations}
    tracks: dict[int, list[Row]] = {}
    seen: dict[int, set[int]] = {}
    for sample in scene.samples:
        for annotation in sample.annotations:
            seen.setdefault(annotation.actor, set()).update([sample.index] if annotation.is_seen else [])
    for sample in scene.samples:
        token = make_token("sample", *key, sample.index)
        samples.append(
            {
                "token": token,
                "timestamp": sample.timestamp,
                "prev": "",
                "next": "",
                "scene_token": scene_token,
            }
        )
        for record in sample.records:
            row_token = make_token("sample_data", *key, sample.index, record.channel)
            is_camera = record.channel != "LIDAR_TOP"
            x, y, yaw = record.ego
            tables["ego_pose"].append(
                {
                    "token": row_token,
                    "timestamp": record.timestamp,
                    "rotation": yaw_quaternion(yaw),
                    "translation": _global(spec, (x, y, 0.0)),
                }
            )
            data[record.channel].append(
                {
                    "token": row_token,
                    "sample_token": token,
                    "ego_pose_token": row_token,
                    "calibrated_sensor_token": calibrations[record.channel],
                    "timestamp": record.timestamp,
                    "fileformat": "jpg" if is_camera else "pcd",
                    "is_key_frame": True,
                    "height": IMAGE_HEIGHT if is_camera else 0,
                    "width": IMAGE_WIDTH if is_camera else 0,
                    "filename": record.filename,
                    "prev": "",
                    "next": "",
                }
            )
        for annotation in sample.annotations:
            if not nearly_seen(seen[annotation.actor], sample.index):
                continue
            tracks.setdefault(annotation.actor, []).append(_annotation_row(scene, annotation, token, key))
    _chain(samples)
    tables["sample"] += samples
    for channel_rows in data.values():
        _chain(channel_rows)
        tables["sample_data"] += channel_rows
    for actor in sorted(tracks):
        rows = tracks[actor]
        _chain(rows)
        tables["sample_annotation"] += rows
        tables["instance"].append(
            {
                "token": rows[0]["instance_token"],
                "category_token": make_token("category", scene.actors[actor][0]),
                "nbr_annotations": len(rows),
                "first_annotation_token": rows[0]["token"],
                "last_annotation_token": rows[-1]["token"],
            }
        )
    tables["scene"].append(
        {
            "token": scene_token,
            "log_token": log_token,
            "nbr_samples": len(samples),
            "first_sample_token": samples[0]["token"],
            "last_sample_token": samples[-1]["token"],
            "name": spec.name,
            "description": scene.description,
        }
    )


def _annotation_row(
    scene: RecordedScene, a: Annotation, sample_token: str, key: tuple[int | str, ...]
) -> Row:
    return {
        "token": make_token("annotation", *key, sample_token, a.actor),
        "sample_token": sample_token,
        "instance_token": make_token("instance", *key, a.actor),
        "visibility_token": a.visibility,
        "attribute_tokens": [make_token("attribute", a.attribute)] if a.attribute else [],
        "translation": _global(scene.spec, a.position),
        "size": list(scene.actors[a.actor][1]),
        "rotation": yaw_quaternion(a.yaw),
        "prev": "",
        "next": "",
        "num_lidar_pts": a.num_lidar_pts,
        "num_radar_pts": 0,
    }

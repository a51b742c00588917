"""`prepare`: from nuScenes' tables to an index of samples, one JSON file per split.

The index has mmdet3d's info v2 form, as JSON, one sample per line. Poses and boxes are computed once, here.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from perception.datasets._can_bus import CanBus
from perception.datasets._files import missing_files
from perception.datasets._poses import pose_matrix, rotation_matrices
from perception.datasets._splits import scenes_of_splits
from perception.datasets._tables import Database, Problem, Record, raise_first, read_database
from perception.runtime.geometry import invert_pose
from perception.structures import CAMERA_NAMES, CLASS_NAMES
from perception.utils import DataError, get_logger, show_progress, write_bytes_atomic

INFO_VERSION = "2.0-perception"
LIDAR = "LIDAR_TOP"

DETECTION_NAMES = {
    "movable_object.barrier": "barrier",
    "vehicle.bicycle": "bicycle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.car": "car",
    "vehicle.construction": "construction_vehicle",
    "vehicle.motorcycle": "motorcycle",
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
    "movable_object.trafficcone": "traffic_cone",
    "vehicle.trailer": "trailer",
    "vehicle.truck": "truck",
}
"""nuScenes category → detection class; the other categories are not detected."""

_POSE_DIGITS = 9
_MAX_TIME_GAP = 1.5  # seconds, the devkit's limit for a velocity from one neighbour; twice that for two


def prepare(
    root: str | Path,
    *,
    version: str | None = None,
    out: str | Path | None = None,
    splits: Sequence[str] | None = None,
    progress: bool = True,
) -> list[Path]:
    """Build the index of a nuScenes root: mini, trainval, test, or a synthetic world.

    Boxes are in the LiDAR frame of their sample; velocity follows nuscenes-devkit's rule (centred difference over the
    neighbouring key frames, none beyond 1.5 s per gap); `lidar2cam` contains the ego motion between the two stamps.

    Args:
        root: folder that holds `<version>/` and `samples/`.
        version: e.g. v1.0-mini; None takes the only one there is.
        out: folder of the index files; default `<root>/perception_index`.
        splits: names of the splits; default the version's own, and those in its `splits.json`.
        progress: report progress on stderr.

    Returns:
        The files written, `<out>/<version>_<split>.json`.

    Raises:
        DataError: the root, the version or a table is not as nuScenes defines it, or an image file is missing; the
            message names table, token and path.
    """
    root = Path(root)
    out = root / "perception_index" if out is None else Path(out)
    database, problems = read_database(root, version)
    raise_first(problems)
    if database is None:
        raise RuntimeError("read_database returned neither a database nor a problem")
    scenes = scenes_of_splits(database, splits)
    frames = database.key_frames()
    used_scenes = list(dict.fromkeys(token for tokens in scenes.values() for token in tokens))
    samples = _samples_by_scene(database, used_scenes)
    used_samples = [record for token in used_scenes for record in samples[token]]
    raise_first(missing_sensors(used_samples, frames))
    used_images = (frames[record["token"]][camera] for record in used_samples for camera in CAMERA_NAMES)
    raise_first(missing_files(root, used_images))

    builder = _IndexBuilder(database, frames)
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for split, scene_tokens in scenes.items():
        path = out / f"{database.version}_{split}.json"
        shown = show_progress(scene_tokens, f"Indexing {split}", is_enabled=progress)
        entries = builder.entries((database["scene"][token], samples[token]) for token in shown)
        write_bytes_atomic(path, _index_pieces(database.version, split, entries))
        paths.append(path)
        get_logger(__name__).info("wrote %s: %d samples", path, sum(len(samples[t]) for t in scene_tokens))
    return paths


def missing_sensors(samples: Sequence[Record], frames: dict[str, dict[str, Record]]) -> list[Problem]:
    """Samples that lack a key frame of a camera or of the LiDAR."""
    return [
        Problem(f"no key frame of {channel} in sample_data", table="sample", token=record["token"])
        for record in samples
        for channel in (*CAMERA_NAMES, LIDAR)
        if channel not in frames[record["token"]]
    ]


def _samples_by_scene(database: Database, scene_tokens: Sequence[str]) -> dict[str, list[Record]]:
    samples: dict[str, list[Record]] = {token: [] for token in scene_tokens}
    for record in database["sample"].values():
        if record["scene_token"] in samples:
            samples[record["scene_token"]].append(record)
    for records in samples.values():
        records.sort(key=lambda record: record["timestamp"])
    return samples


def _index_pieces(version: str, split: str, entries: Iterable[Record]) -> Iterator[bytes]:
    """The index file, sample by sample."""
    metainfo = {
        "categories": {name: label for label, name in enumerate(CLASS_NAMES)},
        "dataset": "nuscenes",
        "version": version,
        "split": split,
        "info_version": INFO_VERSION,
    }
    yield f'{{"metainfo": {json.dumps(metainfo)},\n"data_list": ['.encode()
    for number, entry in enumerate(entries):
        yield (b",\n" if number else b"\n") + _to_json(entry).encode()
    yield b"\n]}\n"


def _to_json(entry: Record) -> str:
    try:
        return json.dumps(entry, allow_nan=False, separators=(",", ":"))
    except ValueError as error:
        raise DataError(
            "a pose, calibration or box of the sample has a number that is not finite, or a quaternion of length 0; "
            "`perception data verify` names the record.",
            sample_token=entry["token"],
        ) from error


def _rounded(pose: np.ndarray) -> list[list[float]]:
    """A pose to 1e-9: 1e-6 pixels on nuScenes' images at 1 m."""
    return pose.round(_POSE_DIGITS).tolist()


class _IndexBuilder:
    """Entries of the index, scene by scene."""

    def __init__(self, database: Database, frames: dict[str, dict[str, Record]]) -> None:
        self._database = database
        self._frames = frames
        self._annotations = database.annotations()
        self._can_bus = CanBus(database.root)
        self._ids = {name: label for label, name in enumerate(CLASS_NAMES)}

    def entries(self, scenes: Iterable[tuple[Record, list[Record]]]) -> Iterator[Record]:
        """Entries of scenes with their samples, each made when it is asked for."""
        for sample_idx, (scene, frame_idx, sample) in enumerate(
            (scene, frame_idx, sample)
            for scene, samples in scenes
            for frame_idx, sample in enumerate(samples)
        ):
            entry: dict[str, Any] = {
                "sample_idx": sample_idx,
                "token": sample["token"],
                "timestamp": sample["timestamp"] * 1e-6,
                "scene_token": scene["token"],
                "scene_name": scene["name"],
                "prev": sample["prev"],
                "next": sample["next"],
                "frame_idx": frame_idx,
                "map_location": self._database.location(scene),
            }
            can = self._can_bus.at(scene["name"], sample["timestamp"])
            if can is not None:
                entry["can_bus"] = can
            entry.update(self._sensors(sample["token"]))
            yield entry

    def _pose(self, table: str, token: str) -> np.ndarray:
        record = self._database[table][token]
        return pose_matrix(record["translation"], record["rotation"])

    def _sensors(self, sample_token: str) -> dict[str, Any]:
        frames = self._frames[sample_token]
        lidar = frames[LIDAR]
        ego2global = self._pose("ego_pose", lidar["ego_pose_token"])
        lidar2ego = self._pose("calibrated_sensor", lidar["calibrated_sensor_token"])
        lidar2global = ego2global @ lidar2ego
        images = {}
        for camera in CAMERA_NAMES:
            record = frames[camera]
            calibration = self._database["calibrated_sensor"][record["calibrated_sensor_token"]]
            cam2ego = self._pose("calibrated_sensor", record["calibrated_sensor_token"])
            cam2global = self._pose("ego_pose", record["ego_pose_token"]) @ cam2ego
            images[camera] = {
                "img_path": record["filename"],
                "cam2img": calibration["camera_intrinsic"],
                "cam2ego": _rounded(cam2ego),
                "lidar2cam": _rounded(invert_pose(cam2global) @ lidar2global),
                "timestamp": record["timestamp"] * 1e-6,
                "sample_data_token": record["token"],
            }
            if "height" in record and "width" in record:
                images[camera] |= {"height": record["height"], "width": record["width"]}
        return {
            "ego2global": _rounded(ego2global),
            "images": images,
            "lidar_points": {
                "num_pts_feats": 5,
                "lidar_path": lidar["filename"],
                "lidar2ego": _rounded(lidar2ego),
            },
            "instances": self._instances(self._annotations[sample_token], lidar2global),
        }

    def _instances(self, records: list[Record], lidar2global: np.ndarray) -> list[dict[str, Any]]:
        if not records:
            return []
        rotation = lidar2global[:3, :3]
        centres = np.array([record["translation"] for record in records])
        centres = (centres - lidar2global[:3, 3]) @ rotation  # (n, 3), LiDAR frame
        headings = rotation_matrices(np.array([record["rotation"] for record in records]))[:, :, 0] @ rotation
        yaws = np.arctan2(headings[:, 1], headings[:, 0])
        velocities = (
            np.array([self._velocity(record) for record in records]) @ rotation
        )  # (n, 3), LiDAR frame
        instances = []
        for record, centre, yaw, velocity in zip(records, centres, yaws, velocities, strict=True):
            width, length, height = record["size"]
            category = self._database["category"][
                self._database["instance"][record["instance_token"]]["category_token"]
            ]
            label = self._ids.get(DETECTION_NAMES.get(category["name"], ""), -1)
            attributes = [self._database["attribute"][token]["name"] for token in record["attribute_tokens"]]
            is_known = bool(np.isfinite(velocity[:2]).all())
            instances.append(
                {
                    "bbox_3d": [*centre.round(6).tolist(), length, width, height, round(float(yaw), 9)],
                    "bbox_label": label,
                    "bbox_label_3d": label,
                    "bbox_3d_isvalid": record["num_lidar_pts"] + record["num_radar_pts"] > 0,
                    "num_lidar_pts": record["num_lidar_pts"],
                    "num_radar_pts": record["num_radar_pts"],
                    "velocity": velocity[:2].round(6).tolist() if is_known else None,
                    "attribute": attributes[0] if attributes else "",
                    "instance_token": record["instance_token"],
                }
            )
        return instances

    def _velocity(self, record: Record) -> np.ndarray:
        """Velocity (3,) in the global frame, m/s, by the devkit's rule; NaN where unknown."""
        annotations, samples = self._database["sample_annotation"], self._database["sample"]
        num_neighbours = bool(record["prev"]) + bool(record["next"])
        first = annotations[record["prev"]] if record["prev"] else record
        last = annotations[record["next"]] if record["next"] else record
        seconds = 1e-6 * (
            samples[last["sample_token"]]["timestamp"] - samples[first["sample_token"]]["timestamp"]
        )
        if num_neighbours == 0 or not 0 < seconds <= num_neighbours * _MAX_TIME_GAP:
            return np.full(3, np.nan)
        return (np.array(last["translation"]) - np.array(first["translation"])) / seconds

"""`verify`: every defect of a nuScenes root at once, before hours of training meet them one by one."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from perception.datasets._files import missing_files
from perception.datasets._image_files import read_image
from perception.datasets._tables import Database, Problem, Record, read_database
from perception.datasets.index_builder import DETECTION_NAMES, missing_sensors
from perception.datasets.vector_map import NuScenesVectorMap, map_path
from perception.structures import CAMERA_NAMES
from perception.utils import DataError, show_progress

LOCATIONS = ("singapore-onenorth", "singapore-hollandvillage", "singapore-queenstown", "boston-seaport")
"""The maps that nuScenes' map expansion has."""

CATEGORIES = frozenset(DETECTION_NAMES) | {
    "animal",
    "human.pedestrian.personal_mobility",
    "human.pedestrian.stroller",
    "human.pedestrian.wheelchair",
    "movable_object.debris",
    "movable_object.pushable_pullable",
    "static_object.bicycle_rack",
    "vehicle.emergency.ambulance",
    "vehicle.emergency.police",
}
"""nuScenes' 23 categories."""

_MAX_QUATERNION_ERROR = 1e-3
_NUM_THREADS = 4


def verify(
    root: str | Path, *, version: str | None = None, decode_images: bool = True, progress: bool = True
) -> list[Problem]:
    """Check a nuScenes root: tables, tokens, times, poses, calibrations, boxes, images and maps.

    LiDAR and radar files are not looked at: this project trains on cameras.

    Args:
        root: folder that holds `<version>/` and `samples/`.
        version: e.g. v1.0-mini; None takes the only one there is.
        decode_images: decode every key-frame image; on the full set this takes an hour on few cores.
        progress: report progress on stderr.

    Returns:
        The defects; empty if there are none. Where the tables themselves cannot be read, only their defects.

    Raises:
        DataError: the root holds no nuScenes, or not this version.
    """
    root = Path(root)
    database, problems = read_database(root, version)
    if database is None or problems:  # tokens that lead nowhere would only break the checks below
        return problems
    frames = database.key_frames()
    problems += missing_sensors(list(database["sample"].values()), frames)
    problems += _sample_problems(database)
    problems += _pose_problems(database)
    problems += _box_problems(database)
    problems += _map_problems(root, database)
    images = [
        record
        for sensors in frames.values()
        for channel, record in sensors.items()
        if channel in CAMERA_NAMES
    ]
    missing = missing_files(root, images)
    problems += missing
    if decode_images:
        absent = {problem.token for problem in missing}
        present = [record for record in images if record["token"] not in absent]
        problems += _image_problems(root, present, progress=progress)
    return problems


def _sample_problems(database: Database) -> Iterator[Problem]:
    samples = database["sample"]
    for token, record in samples.items():
        following = samples.get(record["next"])
        if following is None:
            continue
        if following["timestamp"] <= record["timestamp"]:
            yield Problem(
                f"its timestamp {record['timestamp']} is not before that of its next sample {record['next']} "
                f"({following['timestamp']})",
                table="sample",
                token=token,
            )
        if following["prev"] != token:
            yield Problem(
                f"prev of its next sample {record['next']} is {following['prev']!r}",
                table="sample",
                token=token,
            )
        if following["scene_token"] != record["scene_token"]:
            yield Problem(
                f"its next sample {record['next']} is in another scene", table="sample", token=token
            )


def _pose_problems(database: Database) -> Iterator[Problem]:
    for table in ("calibrated_sensor", "ego_pose"):
        for token, record in database[table].items():
            yield from _rigid_problems(table, token, record)
    for token, record in database["calibrated_sensor"].items():
        if database["sensor"][record["sensor_token"]]["channel"] not in CAMERA_NAMES:
            continue
        intrinsic = np.array(record["camera_intrinsic"], dtype=np.float64)
        is_matrix = intrinsic.shape == (3, 3) and bool(np.isfinite(intrinsic).all())
        if not is_matrix or abs(float(np.linalg.det(intrinsic))) < 1e-6:
            yield Problem(
                f"camera_intrinsic is not an invertible 3×3 matrix: {record['camera_intrinsic']}",
                table="calibrated_sensor",
                token=token,
            )


def _rigid_problems(table: str, token: str, record: Record) -> Iterator[Problem]:
    if not _is_vector(record["translation"], 3):
        yield Problem(
            f"translation must be three finite numbers, got {record['translation']}", table=table, token=token
        )
    rotation = record["rotation"]
    if not _is_vector(rotation, 4) or abs(float(np.linalg.norm(rotation)) - 1) > _MAX_QUATERNION_ERROR:
        yield Problem(
            f"rotation must be a unit quaternion (w, x, y, z), got {rotation}", table=table, token=token
        )


def _box_problems(database: Database) -> Iterator[Problem]:
    for token, record in database["category"].items():
        if record["name"] not in CATEGORIES:
            yield Problem(
                f"{record['name']!r} is not one of nuScenes' categories", table="category", token=token
            )
    for token, record in database["sample_annotation"].items():
        yield from _rigid_problems("sample_annotation", token, record)
        if not _is_vector(record["size"], 3) or min(record["size"]) <= 0:
            yield Problem(
                f"size (width, length, height) must be positive, got {record['size']}",
                table="sample_annotation",
                token=token,
            )
        for field in ("num_lidar_pts", "num_radar_pts"):
            if not isinstance(record[field], int) or record[field] < 0:
                yield Problem(
                    f"{field} must be a whole number, got {record[field]!r}",
                    table="sample_annotation",
                    token=token,
                )
        if len(record["attribute_tokens"]) > 1:
            yield Problem(
                "more than one attribute; the evaluation takes at most one",
                table="sample_annotation",
                token=token,
            )


def _map_problems(root: Path, database: Database) -> Iterator[Problem]:
    used = {scene["log_token"] for scene in database["scene"].values()}
    seen: set[str] = set()
    for token in sorted(used):
        location = database["log"][token]["location"]
        if location not in LOCATIONS and not map_path(root, location).is_file():
            yield Problem(
                f"unknown location {location!r}; nuScenes has {', '.join(LOCATIONS)}. For the map task a place of your "
                f"own needs {map_path('', location)}; boxes are trained without one",
                table="log",
                token=token,
            )
        elif location not in seen:
            seen.add(location)
            try:
                NuScenesVectorMap(root, location)
            except DataError as error:
                yield Problem(error.message, path=error.path or str(map_path(root, location)))
    with_mask = {token for record in database["map"].values() for token in record["log_tokens"]}
    for token in database["log"]:
        if token not in with_mask:
            yield Problem(
                "no record of table map names this log; nuscenes-devkit does not load such tables for the evaluation",
                table="log",
                token=token,
            )
    for token, record in database["map"].items():
        if not (root / record["filename"]).is_file():
            yield Problem(
                "the map's mask is missing; nuscenes-devkit needs it for the evaluation",
                table="map",
                token=token,
                path=str(root / record["filename"]),
            )


def _image_problems(root: Path, records: Sequence[Record], *, progress: bool) -> list[Problem]:
    def check(record: Record) -> Problem | None:
        path = root / record["filename"]
        try:
            image = read_image(path)
        except DataError as error:
            return Problem(error.message, table="sample_data", token=record["token"], path=str(path))
        expected = (record.get("height", image.shape[0]), record.get("width", image.shape[1]))
        if image.shape[:2] != expected:
            return Problem(
                f"the image has (height, width) {image.shape[:2]}, the table says {expected}",
                table="sample_data",
                token=record["token"],
                path=str(path),
            )
        return None

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        results = show_progress(
            pool.map(check, records), "Decoding images", total=len(records), is_enabled=progress
        )
        return [problem for problem in results if problem is not None]


def _is_vector(value: object, size: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == size
        and all(isinstance(number, int | float) and np.isfinite(number) for number in value)
    )

"""Recording: the images, LiDAR files and annotations of a scene's key frames."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.synthetic.actors import LIFT
from perception.synthetic.lidar import count_points, scan
from perception.synthetic.names import visibility_token
from perception.synthetic.render import render
from perception.synthetic.rig import CAMERAS, ego2global, lidar2ego
from perception.synthetic.scene import SAMPLE_PERIOD, Scene, SceneSpec

ANNOTATION_RANGE = 75.0  # metres from the ego vehicle
JPEG_QUALITY = 88
FIRST_STAMP = 1_530_000_000_000_000  # microseconds; scenes begin 1000 s apart
CAMERA_JITTER = 1500  # microseconds either way


@dataclass(frozen=True)
class Annotation:
    """One box at one sample; position of its middle relative to the scene's square, metres.

    `is_seen`: a camera shows at least one pixel of it or the LiDAR has at least one point on it.
    """

    actor: int
    position: tuple[float, float, float]
    yaw: float
    num_lidar_pts: int
    visibility: str
    attribute: str
    is_seen: bool


@dataclass(frozen=True)
class Record:
    """One file of one sensor: channel, path relative to the world's root, stamp (us) and ego pose (x, y, yaw)."""

    channel: str
    filename: str
    timestamp: int
    ego: tuple[float, float, float]


@dataclass(frozen=True)
class Sample:
    """One key frame."""

    index: int
    timestamp: int
    records: list[Record]
    annotations: list[Annotation]


def log_name(spec: SceneSpec) -> str:
    """Name of a scene's recording, used in file names."""
    return f"synthetic-{spec.seed}-{spec.name.replace('-', '')}"


def _boxes(scene: Scene, t: float) -> tuple[NDArray[np.float64], list[int]]:
    """Boxes (n, 7) x, y, z of the middle, length, width, height, yaw of the active actors, and their indices."""
    rows, which = [], []
    for k, actor in enumerate(scene.actors):
        if actor.trajectory.is_active(t):
            x, y, yaw = actor.trajectory.at(t)
            w, length, h = actor.size
            rows.append((x, y, LIFT + h / 2, length, w, h, yaw))
            which.append(k)
    return np.array(rows).reshape(-1, 7), which


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def record_sample(scene: Scene, index: int, root: Path) -> Sample:
    """Record key frame `index` of a scene: write its six images and its LiDAR file below `root`, return its records.

    Raises:
        OSError: a file cannot be written.
    """
    spec = scene.spec
    rng = spec.rng("record", index)
    t = index * SAMPLE_PERIOD
    base = FIRST_STAMP + spec.index * 1_000_000_000
    stamp = base + int(round(t * 1e6))
    pose = scene.ego.at(t)

    boxes, which = _boxes(scene, t)
    solid = [(p.pose[0], p.pose[1], p.size[2] / 2, *p.size, p.pose[2]) for p in scene.props]
    obstacles = np.concatenate([boxes, np.array(solid).reshape(-1, 7)])
    near = np.hypot(obstacles[:, 0] - pose[0], obstacles[:, 1] - pose[1]) < 100.0
    lidar2global = ego2global(*pose) @ lidar2ego()
    points = scan(rng, lidar2global, obstacles[near], int(near[: len(boxes)].sum()))
    counts = count_points(points, lidar2global, boxes)
    filename = f"samples/LIDAR_TOP/{log_name(spec)}__LIDAR_TOP__{stamp}.pcd.bin"
    _write(root / filename, points.tobytes())
    records = [Record("LIDAR_TOP", filename, stamp, pose)]

    visible = np.zeros(len(scene.actors) + 1, dtype=np.int64)
    total = np.zeros_like(visible)
    for number, camera in enumerate(CAMERAS):
        delay = camera.delay_us + int(rng.integers(-CAMERA_JITTER, CAMERA_JITTER + 1))
        moment = t + delay * 1e-6
        picture = render(scene, camera, moment, noise_seed=int(rng.integers(2**31)) + number)
        visible += picture.visible
        total += picture.total
        ok, jpeg = cv2.imencode(".jpg", picture.image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        if not ok:
            raise OSError(f"OpenCV could not encode the image of {camera.name} as JPEG")
        filename = f"samples/{camera.name}/{log_name(spec)}__{camera.name}__{stamp + delay}.jpg"
        _write(root / filename, jpeg.tobytes())
        records.append(Record(camera.name, filename, stamp + delay, scene.ego.at(moment)))

    annotations = []
    for row, k, count in zip(boxes, which, counts, strict=True):
        if np.hypot(row[0] - pose[0], row[1] - pose[1]) > ANNOTATION_RANGE:
            continue
        annotations.append(
            Annotation(
                k,
                (float(row[0]), float(row[1]), float(row[2])),
                float(row[6]),
                int(count),
                visibility_token(int(visible[k + 1]), int(total[k + 1])),
                scene.actors[k].attribute(t),
                bool(count > 0 or visible[k + 1] > 0),
            )
        )
    return Sample(index, stamp, records, annotations)

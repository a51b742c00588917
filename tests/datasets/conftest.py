"""A tiny hand-written nuScenes database: two scenes of four samples, tilted poses, irregular times, known boxes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from perception.datasets import (
    BEVRandomFlip,
    LoadBEVMap,
    LoadMultiViewImages,
    NuScenesBEVDataset,
    ObjectRangeFilter,
    PackBEVInputs,
    PhotometricDistortion,
    ResizeMultiView,
    prepare,
)
from perception.structures import CAMERA_NAMES

VERSION = "v1.0-mini"
SCENES = ("scene-0061", "scene-0103")
NUM_SAMPLES = 4
IMAGE_SIZE = (64, 36)
PC_RANGE = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)
GRID = {"x_range": [-15.0, 15.0], "y_range": [-30.0, 30.0], "resolution": 0.3}
CATEGORIES = ("vehicle.car", "human.pedestrian.adult", "movable_object.trafficcone", "animal")


def _quaternion(yaw: float, pitch: float = 0.0, roll: float = 0.0) -> list[float]:
    x, y, z, w = Rotation.from_euler("ZYX", [yaw, pitch, roll]).as_quat()
    return [float(w), float(x), float(y), float(z)]


class _Writer:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.rng = np.random.default_rng(7)
        self.tables: dict[str, list[dict]] = {
            "category": [{"token": f"cat{i}", "name": name} for i, name in enumerate(CATEGORIES)],
            "attribute": [{"token": "att0", "name": "vehicle.moving"}],
            "visibility": [{"token": "4", "level": "v80-100"}],
            "map": [{"token": "map0", "log_tokens": ["log0"], "filename": "maps/mask.png", "category": ""}],
            "log": [{"token": "log0", "location": "singapore-onenorth"}],
        }
        for (
            table
        ) in "instance sensor calibrated_sensor ego_pose scene sample sample_data sample_annotation".split():
            self.tables[table] = []

    def write(self) -> None:
        self._sensors()
        for scene_idx, name in enumerate(SCENES):
            self._scene(scene_idx, name)
        folder = self.root / VERSION
        folder.mkdir(parents=True)
        for table, records in self.tables.items():
            (folder / f"{table}.json").write_text(json.dumps(records))
        (self.root / "maps" / "expansion").mkdir(parents=True)
        cv2.imwrite(str(self.root / "maps" / "mask.png"), np.zeros((8, 8), np.uint8))
        (self.root / "maps" / "expansion" / "singapore-onenorth.json").write_text(json.dumps(_map()))

    def _sensors(self) -> None:
        for channel in (*CAMERA_NAMES, "LIDAR_TOP"):
            is_camera = channel != "LIDAR_TOP"
            self.tables["sensor"].append(
                {
                    "token": f"sensor-{channel}",
                    "channel": channel,
                    "modality": "camera" if is_camera else "lidar",
                }
            )
            yaw = 0.0 if is_camera else -np.pi / 2
            camera2body = Rotation.from_matrix([[0, 0, 1], [-1, 0, 0], [0, -1, 0]])
            turn = Rotation.from_euler("z", 60.0 * len(self.tables["sensor"]), degrees=True)
            x, y, z, w = (turn * camera2body).as_quat()
            self.tables["calibrated_sensor"].append(
                {
                    "token": f"calib-{channel}",
                    "sensor_token": f"sensor-{channel}",
                    "translation": [1.0, 0.1, 1.5] if is_camera else [0.94, 0.0, 1.84],
                    "rotation": [w, x, y, z] if is_camera else _quaternion(yaw, 0.01, -0.02),
                    "camera_intrinsic": [[50.0, 0, 32.5], [0, 51.0, 17.5], [0, 0, 1]] if is_camera else [],
                }
            )

    def _scene(self, scene_idx: int, name: str) -> None:
        samples = [f"{name}-s{i}" for i in range(NUM_SAMPLES)]
        self.tables["scene"].append(
            {
                "token": f"token-{name}",
                "name": name,
                "log_token": "log0",
                "nbr_samples": NUM_SAMPLES,
                "first_sample_token": samples[0],
                "last_sample_token": samples[-1],
                "description": "",
            }
        )
        # The last gap, 2 s, is too long for a one-sided velocity and short enough for a centred one.
        times = [1_500_000_000_000_000 + scene_idx * 10**9 + t for t in (0, 500_000, 1_050_000, 3_050_000)]
        for i, (token, time) in enumerate(zip(samples, times, strict=True)):
            self.tables["sample"].append(
                {
                    "token": token,
                    "timestamp": time,
                    "scene_token": f"token-{name}",
                    "prev": samples[i - 1] if i else "",
                    "next": samples[i + 1] if i + 1 < NUM_SAMPLES else "",
                }
            )
            self._frames(name, token, i, time)
        self._tracks(name, samples)

    def _frames(self, name: str, sample: str, i: int, time: int) -> None:
        for channel in (*CAMERA_NAMES, "LIDAR_TOP"):
            delay = 0 if channel == "LIDAR_TOP" else -40_000
            progress = i + delay * 2e-6
            token = f"{sample}-{channel}"
            self.tables["ego_pose"].append(
                {
                    "token": f"pose-{token}",
                    "timestamp": time + delay,
                    "translation": [200.0 + 4 * progress, 210.0 + 2 * progress, 0.0],
                    "rotation": _quaternion(0.5 + 0.1 * progress, 0.01, 0.015),
                }
            )
            is_camera = channel != "LIDAR_TOP"
            filename = f"samples/{channel}/{token}" + (".jpg" if is_camera else ".pcd.bin")
            self.tables["sample_data"].append(
                {
                    "token": token,
                    "sample_token": sample,
                    "ego_pose_token": f"pose-{token}",
                    "calibrated_sensor_token": f"calib-{channel}",
                    "timestamp": time + delay,
                    "fileformat": "jpg" if is_camera else "pcd",
                    "is_key_frame": True,
                    "height": IMAGE_SIZE[1] if is_camera else 0,
                    "width": IMAGE_SIZE[0] if is_camera else 0,
                    "filename": filename,
                    "prev": "",
                    "next": "",
                }
            )
            if is_camera:
                path = self.root / filename
                path.parent.mkdir(parents=True, exist_ok=True)
                image = self.rng.integers(0, 255, (*IMAGE_SIZE[::-1], 3), dtype=np.uint8)
                cv2.imwrite(str(path), image)

    def _tracks(self, name: str, samples: list[str]) -> None:
        # (category, size w l h, velocity per sample, samples it is seen in, points)
        tracks = (
            (0, [1.9, 4.5, 1.6], (2.0, 1.0), range(4), 12),
            (1, [0.6, 0.7, 1.75], (0.5, -0.5), range(1, 3), 1),
            (2, [0.4, 0.4, 0.8], (0.0, 0.0), range(2, 3), 3),
            (3, [0.4, 0.9, 0.5], (0.0, 0.0), range(4), 2),
            (0, [2.0, 5.0, 1.8], (0.0, 0.0), range(2, 4), 0),
        )
        for number, (category, size, velocity, seen, points) in enumerate(tracks):
            instance = f"{name}-i{number}"
            tokens = [f"{instance}-a{i}" for i in seen]
            self.tables["instance"].append(
                {
                    "token": instance,
                    "category_token": f"cat{category}",
                    "nbr_annotations": len(tokens),
                    "first_annotation_token": tokens[0],
                    "last_annotation_token": tokens[-1],
                }
            )
            for k, i in enumerate(seen):
                x, y = 210.0 + 3 * number + velocity[0] * i, 205.0 + 4 * number + velocity[1] * i
                self.tables["sample_annotation"].append(
                    {
                        "token": tokens[k],
                        "sample_token": samples[i],
                        "instance_token": instance,
                        "visibility_token": "4",
                        "attribute_tokens": ["att0"] if category == 0 else [],
                        "translation": [x, y, size[2] / 2],
                        "size": size,
                        "rotation": _quaternion(0.3 + number),
                        "prev": tokens[k - 1] if k else "",
                        "next": tokens[k + 1] if k + 1 < len(tokens) else "",
                        "num_lidar_pts": points,
                        "num_radar_pts": 0,
                    }
                )


def _map() -> dict:
    """A straight road along x, 40 m … 400 m, with two lanes, a divider, a crossing and a hole in the drivable area."""
    content: dict = {
        layer: []
        for layer in (
            "polygon line node drivable_area road_segment road_block lane ped_crossing walkway stop_line carpark_area "
            "road_divider lane_divider traffic_light lane_connector"
        ).split()
    }
    content |= {"arcline_path_3": {}, "connectivity": {}, "version": "1.3", "canvas_edge": [500.0, 500.0]}

    def nodes(points: list[tuple[float, float]]) -> list[str]:
        tokens = []
        for x, y in points:
            tokens.append(f"node{len(content['node'])}")
            content["node"].append({"token": tokens[-1], "x": float(x), "y": float(y)})
        return tokens

    def polygon(points: list[tuple[float, float]], holes: list[list[tuple[float, float]]] = ()) -> str:
        token = f"polygon{len(content['polygon'])}"
        content["polygon"].append(
            {
                "token": token,
                "exterior_node_tokens": nodes(points),
                "holes": [{"node_tokens": nodes(hole)} for hole in holes],
            }
        )
        return token

    def box(x0: float, y0: float, x1: float, y1: float) -> list[tuple[float, float]]:
        return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]

    content["line"].append({"token": "line0", "node_tokens": nodes([(40, 210), (400, 210)])})
    content["lane_divider"].append({"token": "divider0", "line_token": "line0", "lane_divider_segments": []})
    for y in (204, 210):
        content["lane"].append(
            {
                "token": f"lane{y}",
                "polygon_token": polygon(box(40, y, 400, y + 6)),
                "left_lane_divider_segments": [],
                "right_lane_divider_segments": [],
            }
        )
    content["road_segment"].append({"token": "road0", "polygon_token": polygon(box(40, 204, 400, 216))})
    content["ped_crossing"].append({"token": "crossing0", "polygon_token": polygon(box(212, 204, 216, 216))})
    hole = box(225, 208, 229, 212)
    area = polygon(box(40, 200, 400, 220), [hole])
    content["drivable_area"].append({"token": "area0", "polygon_tokens": [area]})
    return content


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database; read only."""
    root = tmp_path_factory.mktemp("tiny") / "nuscenes"
    _Writer(root).write()
    return root


@pytest.fixture
def tiny_copy(tiny_root: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_root, tmp_path / "nuscenes"))


@pytest.fixture
def edit_table(tiny_copy: Path) -> Callable[[str, Callable[[list[dict]], object]], None]:
    """Change a table of the copy in place: `edit_table("sample", lambda records: records[0].update(prev="x"))`."""

    def edit(table: str, change: Callable[[list[dict]], object]) -> None:
        path = tiny_copy / VERSION / f"{table}.json"
        records = json.loads(path.read_text())
        change(records)
        path.write_text(json.dumps(records))

    return edit


@pytest.fixture(scope="module")
def index(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The index of both scenes in one file: eight samples."""
    folder = tmp_path_factory.mktemp("index")
    train, val = prepare(tiny_root, out=folder, progress=False)
    content = json.loads(train.read_text())
    content["data_list"] += json.loads(val.read_text())["data_list"]
    path = folder / "both.json"
    path.write_text(json.dumps(content, indent=1))
    return path


@pytest.fixture
def build(tiny_root: Path, index: Path, tmp_path: Path) -> Callable[..., NuScenesBEVDataset]:
    """The dataset of the index, with options changed."""

    def make(**options: Any) -> NuScenesBEVDataset:
        options.setdefault("ann_file", index)
        options.setdefault("data_root", tiny_root)
        options.setdefault(
            "pipeline",
            [
                {"type": LoadMultiViewImages, "target_size": (32, 18)},
                {"type": ResizeMultiView, "size": (32, 18)},
                {"type": PhotometricDistortion},
                {"type": BEVRandomFlip},
                {"type": "BEVRandomRotate", "max_angle": 20.0},
                {"type": ObjectRangeFilter, "pc_range": PC_RANGE},
                {"type": LoadBEVMap, "grid": GRID, "cache_dir": str(tmp_path / "cache")},
                {"type": PackBEVInputs},
            ],
        )
        return NuScenesBEVDataset(**options)

    return make

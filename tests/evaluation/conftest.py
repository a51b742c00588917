"""A hand-written nuScenes database of two scenes, and its ground truth in the LiDAR frame by the devkit."""

# isort: off
import perception  # noqa: F401 - before mmdet3d, for it supplies mmcv._ext

# isort: on
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.structures import InstanceData
from nuscenes import NuScenes
from pyquaternion import Quaternion

from perception.structures import CLASS_NAMES

CATEGORIES = {
    "car": "vehicle.car",
    "truck": "vehicle.truck",
    "construction_vehicle": "vehicle.construction",
    "bus": "vehicle.bus.rigid",
    "trailer": "vehicle.trailer",
    "barrier": "movable_object.barrier",
    "motorcycle": "vehicle.motorcycle",
    "bicycle": "vehicle.bicycle",
    "pedestrian": "human.pedestrian.adult",
    "traffic_cone": "movable_object.trafficcone",
}
SIZES = {  # width, length, height
    "car": (1.9, 4.6, 1.7),
    "truck": (2.5, 6.9, 2.8),
    "construction_vehicle": (2.7, 6.4, 3.2),
    "bus": (2.9, 11.0, 3.5),
    "trailer": (2.9, 12.3, 3.9),
    "barrier": (2.5, 0.5, 1.0),
    "motorcycle": (0.8, 2.1, 1.5),
    "bicycle": (0.6, 1.7, 1.3),
    "pedestrian": (0.7, 0.7, 1.8),
    "traffic_cone": (0.4, 0.4, 1.1),
}
MOVING = {"car": "vehicle.moving", "bicycle": "cycle.with_rider", "pedestrian": "pedestrian.moving"}
STILL = {
    "truck": "vehicle.parked",
    "construction_vehicle": "vehicle.parked",
    "bus": "vehicle.stopped",
    "trailer": "vehicle.parked",
    "motorcycle": "cycle.without_rider",
}
LIDAR2EGO = ([0.94, 0.0, 1.84], Quaternion(axis=(0, 0, 1), degrees=-90.0))


def write_database(root: Path, *, num_samples: int = 3, with_boxes: bool = True) -> Path:
    """Write a `v1.0-mini` of two scenes; the car of each has no point in its first sample."""
    tables: dict[str, list[dict]] = {name: [] for name in ("sample", "sample_data", "ego_pose", "scene")}
    tables |= {"sample_annotation": [], "instance": []}
    attributes = sorted({*MOVING.values(), *STILL.values()})
    tables["attribute"] = [{"token": f"attr-{name}", "name": name, "description": ""} for name in attributes]
    tables["category"] = [{"token": f"cat-{name}", "name": name} for name in CATEGORIES.values()]
    tables["visibility"] = []
    tables["sensor"] = [{"token": "lidar", "channel": "LIDAR_TOP", "modality": "lidar"}]
    tables["calibrated_sensor"] = [
        {
            "token": "calibration",
            "sensor_token": "lidar",
            "translation": LIDAR2EGO[0],
            "rotation": LIDAR2EGO[1].elements.tolist(),
            "camera_intrinsic": [],
        }
    ]
    tables["log"] = [{"token": "log", "location": "singapore-onenorth"}]
    tables["map"] = [
        {"token": "map", "log_tokens": ["log"], "filename": "maps/map.png", "category": "semantic_prior"}
    ]
    for scene_index, scene in enumerate(("scene-0103", "scene-0916")):
        tables["scene"].append({"token": scene, "name": scene, "log_token": "log"})
        heading = 0.4 + scene_index
        for index in range(num_samples):
            token = f"{scene}-{index}"
            ego = [400.0 + 3 * index * np.cos(heading), 900.0 + 3 * index * np.sin(heading), 0.0]
            near = {"prev": index > 0, "next": index < num_samples - 1}
            links = {
                key: f"{scene}-{index + (1 if key == 'next' else -1)}" if has else ""
                for key, has in near.items()
            }
            stamp = 1_500_000_000_000_000 + scene_index * 60_000_000 + index * 500_000
            tables["sample"].append({"token": token, "timestamp": stamp, "scene_token": scene, **links})
            rotation = Quaternion(axis=(0, 0, 1), radians=heading)
            tables["ego_pose"].append(
                {
                    "token": token,
                    "translation": ego,
                    "rotation": rotation.elements.tolist(),
                    "timestamp": stamp,
                }
            )
            tables["sample_data"].append(
                {
                    "token": f"lidar-{token}",
                    "sample_token": token,
                    "calibrated_sensor_token": "calibration",
                    "ego_pose_token": token,
                    "is_key_frame": True,
                    "filename": f"samples/LIDAR_TOP/{token}.bin",
                    "timestamp": stamp,
                    "prev": "",
                    "next": "",
                }
            )
            for label, name in enumerate(CLASS_NAMES if with_boxes else ()):
                angle = label * 0.6 + scene_index
                speed = 4.0 if name in MOVING else 0.0
                yaw = angle * 1.7
                step = 0.5 * index * speed
                attribute = MOVING.get(name) or STILL.get(name)
                annotation = f"{token}-{name}"
                tables["sample_annotation"].append(
                    {
                        "token": annotation,
                        "sample_token": token,
                        "instance_token": f"{scene}-{name}",
                        "attribute_tokens": [f"attr-{attribute}"] if attribute else [],
                        "visibility_token": "",
                        "translation": [
                            400.0 + 15 * np.cos(angle) + step * np.cos(yaw),
                            900.0 + 15 * np.sin(angle) + step * np.sin(yaw),
                            SIZES[name][2] / 2,
                        ],
                        "size": list(SIZES[name]),
                        "rotation": Quaternion(axis=(0, 0, 1), radians=yaw).elements.tolist(),
                        "prev": links["prev"] and f"{links['prev']}-{name}",
                        "next": links["next"] and f"{links['next']}-{name}",
                        "num_lidar_pts": 0 if name == "car" and index == 0 else 7,
                        "num_radar_pts": 0,
                    }
                )
        if with_boxes:
            tables["instance"] += [
                {"token": f"{scene}-{name}", "category_token": f"cat-{category}"}
                for name, category in CATEGORIES.items()
            ]
    folder = root / "v1.0-mini"
    folder.mkdir(parents=True)
    for name, records in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(records), encoding="utf-8")
    (root / "maps").mkdir()
    (root / "maps" / "map.png").write_bytes(b"")
    return root


def truth_samples(tables: NuScenes) -> list[Det3DDataSample]:
    """Ground truth by the devkit's own transforms, not by ours."""
    samples = []
    for record in tables.sample:
        data = tables.get("sample_data", record["data"]["LIDAR_TOP"])
        pose = tables.get("ego_pose", data["ego_pose_token"])
        calibration = tables.get("calibrated_sensor", data["calibrated_sensor_token"])
        rows, labels, attributes = [], [], []
        names = {attribute["token"]: attribute["name"] for attribute in tables.attribute}
        for token in record["anns"]:
            annotation = tables.get("sample_annotation", token)
            box = tables.get_box(token)
            velocity = tables.box_velocity(token)
            for frame in (pose, calibration):
                box.translate(-np.array(frame["translation"]))
                box.rotate(Quaternion(frame["rotation"]).inverse)
                velocity = Quaternion(frame["rotation"]).inverse.rotate(velocity)
            width, length, height = box.wlh
            yaw = box.orientation.yaw_pitch_roll[0]
            x, y, z = box.center
            rows.append([x, y, z - height / 2, length, width, height, yaw, velocity[0], velocity[1]])
            labels.append(list(CATEGORIES.values()).index(annotation["category_name"]))
            attributes.append(
                names[annotation["attribute_tokens"][0]] if annotation["attribute_tokens"] else ""
            )
        boxes = torch.tensor(rows, dtype=torch.float32).reshape(-1, 9)
        sample = Det3DDataSample()
        sample.set_metainfo(
            {
                "sample_token": record["token"],
                "ego2global": _matrix(pose),
                "lidar2ego": _matrix(calibration),
                "bev_aug": np.eye(4),
            }
        )
        truth = InstanceData()
        truth.bboxes_3d = LiDARInstance3DBoxes(boxes, box_dim=9)
        truth.labels_3d = torch.tensor(labels, dtype=torch.long)
        sample.gt_instances_3d = truth
        predicted = InstanceData()
        predicted.bboxes_3d = LiDARInstance3DBoxes(boxes.clone(), box_dim=9)
        predicted.labels_3d = truth.labels_3d.clone()
        predicted.scores_3d = torch.ones(len(boxes))
        predicted.attributes = attributes
        sample.pred_instances_3d = predicted
        samples.append(sample)
    return samples


def _matrix(record: dict) -> np.ndarray:
    matrix = Quaternion(record["rotation"]).transformation_matrix
    matrix[:3, 3] = record["translation"]
    return matrix


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_database(tmp_path_factory.mktemp("tiny world ü"))


@pytest.fixture(scope="session")
def tiny_tables(tiny_root: Path) -> NuScenes:
    return NuScenes("v1.0-mini", str(tiny_root), verbose=False)


@pytest.fixture
def tiny_samples(tiny_tables: NuScenes) -> list[Det3DDataSample]:
    return truth_samples(tiny_tables)


@pytest.fixture(scope="session")
def make_database():
    return write_database

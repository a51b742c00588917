"""What a model saw at one time: boxes in the vehicle's and in the global frame, and the map around it."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from perception.runtime.attributes import attribute_of
from perception.runtime.geometry import quaternion


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """n boxes in one frame of reference.

    Attributes:
        centers: (n, 3), metres: the middle of the box, as nuScenes has it.
        sizes: (n, 3), length (along the heading), width, height, metres.
        rotations: (n, 4), quaternions (w, x, y, z) of the box's axes.
        yaws: (n,), direction of the heading in the x-y plane, radians counter-clockwise from x.
        velocities: (n, 3), m/s; 0 where the model knows none.
    """

    centers: np.ndarray
    sizes: np.ndarray
    rotations: np.ndarray
    yaws: np.ndarray
    velocities: np.ndarray

    def __len__(self) -> int:
        return len(self.centers)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Boxes and map of one frame; boxes best first.

    Attributes:
        stream: as of the frame.
        timestamp: as of the frame.
        boxes_lidar: (n, 9), LiDAR frame: x, y, z of the bottom's centre, length, width, height (m), yaw (rad), vx, vy
            (m/s), as the graph gives them.
        boxes_ego: in the vehicle's frame (x forward, y left, z up).
        boxes_global: in the global frame.
        scores: (n,), 0…1.
        labels: (n,), int64.
        names: class of each box.
        attributes: nuScenes' attribute of each box; "" where its class has none.
        map_probabilities: (classes, rows, columns), or None for a model without a map; the manifest's `seg` says where
            its pixels lie.
        has_history: whether the stream's frame before it went in.
        reset_reason: why not: "start", "scene", "gap" or "jump"; "" with history.
    """

    stream: Hashable
    timestamp: float
    boxes_lidar: np.ndarray
    boxes_ego: Boxes
    boxes_global: Boxes
    scores: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    attributes: tuple[str, ...]
    map_probabilities: np.ndarray | None
    has_history: bool
    reset_reason: str

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def map_classes(self) -> np.ndarray | None:
        """(rows, columns), int64: the likeliest class of each pixel of the map."""
        return None if self.map_probabilities is None else self.map_probabilities.argmax(axis=0)

    def nuscenes_entries(self, sample_token: str) -> list[dict[str, Any]]:
        """The boxes as entries of a nuScenes result file.

        Args:
            sample_token: nuScenes' token of the sample.
        """
        found = self.boxes_global
        return [
            {
                "sample_token": sample_token,
                "translation": found.centers[index].tolist(),
                "size": found.sizes[index][[1, 0, 2]].tolist(),  # width, length, height
                "rotation": found.rotations[index].tolist(),
                "velocity": found.velocities[index, :2].tolist(),
                "detection_name": self.names[index],
                "detection_score": float(self.scores[index]),
                "attribute_name": self.attributes[index],
            }
            for index in range(len(self))
        ]


@dataclass(frozen=True, kw_only=True)
class ImagePrediction:
    """Boxes and segmentation of one image; boxes best first.

    Attributes:
        boxes: (n, 4), x1, y1, x2, y2, pixels of the image.
        scores: (n,), 0…1.
        labels: (n,), int64.
        names: class of each box.
        seg_classes: (height, width), uint8: class of each pixel, 255 where the model commits to none; None for a model
            without segmentation.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    seg_classes: np.ndarray | None

    def __len__(self) -> int:
        return len(self.scores)


def transform_boxes(boxes: np.ndarray, lidar2target: np.ndarray) -> Boxes:
    """Boxes of the LiDAR frame in another one.

    Args:
        boxes: (n, 9), bottom centres, LiDAR frame; a velocity may be NaN, unknown.
        lidar2target: (4, 4).

    Example:
        >>> moved = np.eye(4)
        >>> moved[0, 3] = 10.0
        >>> transform_boxes(np.array([[1.0, 2, -1, 4, 2, 2, 0, 0, 0]]), moved).centers.tolist()
        [[11.0, 2.0, 0.0]]
    """
    boxes = np.asarray(boxes, np.float64)
    rotation = lidar2target[:3, :3]
    centers = boxes[:, :3] + np.array([0.0, 0.0, 0.5]) * boxes[:, 5:6]
    velocities = np.zeros((len(boxes), 3))
    velocities[:, :2] = np.nan_to_num(boxes[:, 7:9], nan=0.0)
    headings = np.stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6]), np.zeros(len(boxes))], axis=1) @ rotation.T
    return Boxes(
        centers=centers @ rotation.T + lidar2target[:3, 3],
        sizes=boxes[:, 3:6],
        rotations=_turned(quaternion(rotation), boxes[:, 6]),
        yaws=np.arctan2(headings[:, 1], headings[:, 0]),
        velocities=velocities @ rotation.T,
    )


def attributes_of(names: Sequence[str], boxes: np.ndarray) -> tuple[str, ...]:
    """Attribute, in nuScenes' words, of each of (n, 9) boxes, by class and speed."""
    speeds = np.linalg.norm(np.nan_to_num(np.asarray(boxes, np.float64)[:, 7:9], nan=0.0), axis=1)
    return tuple(attribute_of(name, float(speed)) for name, speed in zip(names, speeds, strict=True))


def _turned(base: np.ndarray, yaws: np.ndarray) -> np.ndarray:
    """(n, 4): a rotation after turns about z; the product of the quaternions, written out."""
    w, x, y, z = base
    cos, sin = np.cos(yaws / 2), np.sin(yaws / 2)
    return np.stack([w * cos - z * sin, x * cos + y * sin, y * cos - x * sin, w * sin + z * cos], axis=1)

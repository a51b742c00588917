"""Boxes of the LiDAR frame → entries of a nuScenes result file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pyquaternion import Quaternion

from perception.runtime.attributes import attribute_of


def lidar2global(sample: Mapping[str, Any]) -> np.ndarray:
    """(4, 4), float64, LiDAR frame → global frame, from a data sample's `ego2global` and `lidar2ego`.

    Raises:
        ValueError: a pose is absent, or the sample was flipped or rotated in the bird's-eye view.
    """
    poses = {}
    for name in ("ego2global", "lidar2ego"):
        pose = sample.get(name, None)
        if pose is None:
            raise ValueError(
                f"Sample {sample.get('sample_token', '')} carries no {name}; add it to the packing "
                "transform's meta_keys."
            )
        poses[name] = np.asarray(pose, dtype=np.float64)
    augmentation = sample.get("bev_aug", None)
    if augmentation is not None and not np.allclose(augmentation, np.eye(4), atol=1e-6):
        raise ValueError(
            f"Sample {sample.get('sample_token', '')} was flipped or rotated in the bird's-eye view (bev_aug "
            "is not the identity). Evaluate with a pipeline without augmentation."
        )
    return poses["ego2global"] @ poses["lidar2ego"]


@dataclass(frozen=True, kw_only=True)
class SampleBoxes:
    """One sample's boxes until the result file is written: its entries would take thirty times the memory.

    Attributes:
        boxes: (n, 7 or 9), as in `select_boxes`, best score first.
        scores: (n,).
        labels: (n,), uint8.
        pose: (4, 4), float64, LiDAR frame → global frame.
        attributes: (n,) attribute names, or None.
        num_dropped: boxes left out because they were not finite.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    pose: np.ndarray
    attributes: tuple[str, ...] | None
    num_dropped: int = 0

    def __len__(self) -> int:
        return len(self.scores)


def select_boxes(
    *,
    sample_token: str,
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    pose: np.ndarray,
    num_classes: int,
    attributes: Sequence[str] | None = None,
    max_boxes: int = 500,
) -> SampleBoxes:
    """Check one sample's boxes, drop those that are not finite, and keep the `max_boxes` with the best scores.

    Args:
        sample_token: the sample.
        boxes: (n, 7 or 9), LiDAR frame, bottom-centre (x, y, z, l, w, h, yaw[, vx, vy]), metres, rad, m/s. A
            NaN velocity (unknown) is written as 0: JSON has no NaN.
        scores: (n,).
        labels: (n,), int, indices into `class_names`.
        pose: (4, 4), LiDAR frame → global frame.
        num_classes: number of classes that labels count.
        attributes: (n,) attribute names, or None.
        max_boxes: nuScenes' limit per sample.

    Raises:
        ValueError: a size is not positive, or a label has no class.
    """
    count = len(boxes)
    if not len(scores) == len(labels) == count:
        raise ValueError(
            f"Sample {sample_token}: {count} boxes, {len(scores)} scores and {len(labels)} labels."
        )
    # A velocity may be NaN (unknown) but not infinite.
    is_finite = (
        np.isfinite(boxes[:, :7]).all(axis=1) & ~np.isinf(boxes[:, 7:]).any(axis=1) & np.isfinite(scores)
    )
    kept = np.flatnonzero(is_finite)
    _check(sample_token, boxes[kept], labels[kept], num_classes)
    order = kept[np.argsort(-scores[kept], kind="stable")[:max_boxes]]
    return SampleBoxes(
        boxes=boxes[order],
        scores=scores[order],
        labels=labels[order].astype(np.uint8),
        pose=pose,
        attributes=None if attributes is None else tuple(attributes[index] for index in order),
        num_dropped=count - len(kept),
    )


def boxes2entries(
    sample_token: str, found: SampleBoxes, *, class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """Entries of one sample in the result file, global frame; attributes by class and speed where not given.

    Args:
        sample_token: the sample.
        found: its boxes.
        class_names: names of the labels.
    """
    count, labels, pose, attributes = len(found), found.labels, found.pose, found.attributes
    boxes, scores = found.boxes.astype(np.float64), found.scores.astype(np.float64)
    rotation = pose[:3, :3]
    centres = boxes[:, :3] + np.array([0.0, 0.0, 0.5]) * boxes[:, 5:6]
    centres = centres @ rotation.T + pose[:3, 3]
    velocities = np.zeros((count, 3))
    if boxes.shape[1] >= 9:
        velocities[:, :2] = np.nan_to_num(boxes[:, 7:9], nan=0.0)
    speeds = np.linalg.norm(velocities, axis=1)
    velocities = velocities @ rotation.T
    base = Quaternion(matrix=rotation, rtol=1e-4, atol=1e-4)

    entries = []
    for index in range(count):
        name = class_names[int(labels[index])]
        turn = base * Quaternion(axis=(0.0, 0.0, 1.0), radians=float(boxes[index, 6]))
        length, width, height = boxes[index, 3:6]
        entries.append(
            {
                "sample_token": sample_token,
                "translation": centres[index].tolist(),
                "size": [float(width), float(length), float(height)],
                "rotation": turn.elements.tolist(),
                "velocity": velocities[index, :2].tolist(),
                "detection_name": name,
                "detection_score": float(scores[index]),
                "attribute_name": attribute_of(name, float(speeds[index]))
                if attributes is None
                else attributes[index],
            }
        )
    return entries


def _check(token: str, boxes: np.ndarray, labels: np.ndarray, num_classes: int) -> None:
    if (boxes[:, 3:6] <= 0).any():
        first = int(np.flatnonzero((boxes[:, 3:6] <= 0).any(axis=1))[0])
        raise ValueError(
            f"Sample {token}: predicted box {first} has a size that is not positive: "
            f"{boxes[first, 3:6].tolist()} m."
        )
    if len(labels) and not (0 <= int(np.min(labels)) and int(np.max(labels)) < num_classes):
        raise ValueError(
            f"Sample {token}: labels {int(np.min(labels))}...{int(np.max(labels))} found, allowed "
            f"0...{num_classes - 1}."
        )

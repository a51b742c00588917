"""What BDD100K calls the things of this world: box categories and segmentation classes."""

from __future__ import annotations

from perception.structures import BDD_SEG_CLASSES, IGNORE_SEG

SEG_ID: dict[str, int] = {name: number for number, name in enumerate(BDD_SEG_CLASSES)} | {"": IGNORE_SEG}
"""Mask value of each class; '' is what no class covers."""

ACTOR_CLASSES: dict[str, tuple[str, str | None]] = {
    "car": ("car", "car"),
    "truck": ("truck", "truck"),
    "bus": ("bus", "bus"),
    "train": ("train", "train"),
    "motorcycle": ("motorcycle", "motorcycle"),
    "bicycle": ("bicycle", "bicycle"),
    "pedestrian": ("person", "pedestrian"),
    # As in the real labels: categories that the official evaluation ignores, in masks 255.
    "construction_vehicle": ("", "other vehicle"),
    "trailer": ("", "trailer"),
    "barrier": ("", None),
    "traffic_cone": ("", None),
}
"""Segmentation class and box category of each kind of actor."""

PROP_CLASSES: dict[str, str] = {
    "building": "building",
    "tree": "vegetation",
    "lamp": "pole",
    "fence": "fence",
    "wall": "wall",
}
"""Segmentation class of each kind of prop."""

IMAGE_SETS: tuple[str, ...] = ("100k", "10k")
"""Images with boxes, and images with masks; no image is in both."""

SPLITS: tuple[str, ...] = ("train", "val")

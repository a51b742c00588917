"""Boxes, cameras, grids and ego motion: frames and units live here. Torch and NumPy only."""

from perception.structures.boxes import CODE_SIZE, box_corners, decode_boxes, encode_boxes, points_in_boxes
from perception.structures.cameras import MIN_DEPTH, compose_lidar2img, project_points, resize_matrix
from perception.structures.driving_2d import (
    BDD_BOX_CLASSES,
    BDD_SEG_CLASSES,
    IGNORE_SEG,
    exclusive2inclusive,
    inclusive2exclusive,
)
from perception.structures.ego_motion import (
    EGO_MOTION_SIZE,
    bev_shift,
    ego_motion,
    heading,
    upstream_ego_motion,
)
from perception.structures.grids import BEVGrid, MapGrid
from perception.structures.names import CAMERA_NAMES, CLASS_NAMES, FILLED_MAP_CLASSES, MAP_CLASSES

__all__ = [
    "BDD_BOX_CLASSES",
    "BDD_SEG_CLASSES",
    "CAMERA_NAMES",
    "CLASS_NAMES",
    "CODE_SIZE",
    "EGO_MOTION_SIZE",
    "FILLED_MAP_CLASSES",
    "IGNORE_SEG",
    "MAP_CLASSES",
    "MIN_DEPTH",
    "BEVGrid",
    "MapGrid",
    "bev_shift",
    "box_corners",
    "compose_lidar2img",
    "decode_boxes",
    "ego_motion",
    "encode_boxes",
    "exclusive2inclusive",
    "heading",
    "inclusive2exclusive",
    "points_in_boxes",
    "project_points",
    "resize_matrix",
    "upstream_ego_motion",
]

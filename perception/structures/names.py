"""The words that every part shares: detection classes, cameras and map classes, in the order of the tensors."""

CLASS_NAMES = (
    "car",
    "truck",
    "construction_vehicle",
    "bus",
    "trailer",
    "barrier",
    "motorcycle",
    "bicycle",
    "pedestrian",
    "traffic_cone",
)
"""nuScenes' ten detection classes in BEVFormer's order (mmdet3d's differs)."""

CAMERA_NAMES = (
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_FRONT_LEFT",
    "CAM_BACK",
    "CAM_BACK_LEFT",
    "CAM_BACK_RIGHT",
)
"""The six cameras in BEVFormer's order; camera embeddings are indexed by it."""

MAP_CLASSES = ("background", "divider", "ped_crossing", "boundary")
"""Values 0…3 of a map target; where lines cross, the later class wins."""

FILLED_MAP_CLASSES = ("background", "divider", "ped_crossing", "drivable_area")
"""Values 0…3 of a map target whose areas are filled."""

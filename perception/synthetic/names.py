"""Names that nuScenes fixes: scenes, maps, categories, attributes, visibility levels; and real object sizes."""

from __future__ import annotations

# The two splits interleaved, so that any first n >= 2 scenes hold both. The second and seventh are mini_val.
SCENE_NAMES: tuple[str, ...] = (
    "scene-0061",
    "scene-0103",
    "scene-0553",
    "scene-0655",
    "scene-0757",
    "scene-0796",
    "scene-0916",
    "scene-1077",
    "scene-1094",
    "scene-1100",
)
VAL_SCENES: tuple[str, ...] = ("scene-0103", "scene-0916")

# Map name -> file stem of its semantic prior in the official release.
LOCATIONS: dict[str, str] = {
    "boston-seaport": "36092f0b03a857c6a3403e25b4b7aab3",
    "singapore-onenorth": "53992ee3023e5494b90c316c183be829",
    "singapore-hollandvillage": "37819e65e09e5547b8a3ceaefba56bb2",
    "singapore-queenstown": "93406b464a165eaba6d9de76ca09f5da",
}

CATEGORIES: tuple[str, ...] = (
    "human.pedestrian.adult",
    "human.pedestrian.child",
    "human.pedestrian.wheelchair",
    "human.pedestrian.stroller",
    "human.pedestrian.personal_mobility",
    "human.pedestrian.police_officer",
    "human.pedestrian.construction_worker",
    "animal",
    "vehicle.car",
    "vehicle.motorcycle",
    "vehicle.bicycle",
    "vehicle.bus.bendy",
    "vehicle.bus.rigid",
    "vehicle.truck",
    "vehicle.construction",
    "vehicle.emergency.ambulance",
    "vehicle.emergency.police",
    "vehicle.trailer",
    "movable_object.barrier",
    "movable_object.trafficcone",
    "movable_object.pushable_pullable",
    "movable_object.debris",
    "static_object.bicycle_rack",
)

ATTRIBUTES: tuple[str, ...] = (
    "vehicle.moving",
    "vehicle.stopped",
    "vehicle.parked",
    "cycle.with_rider",
    "cycle.without_rider",
    "pedestrian.sitting_lying_down",
    "pedestrian.standing",
    "pedestrian.moving",
)

VISIBILITY: dict[str, tuple[str, str]] = {
    "1": ("v0-40", "visibility of whole object is between 0 and 40%"),
    "2": ("v40-60", "visibility of whole object is between 40 and 60%"),
    "3": ("v60-80", "visibility of whole object is between 60 and 80%"),
    "4": ("v80-100", "visibility of whole object is between 80 and 100%"),
}

# Mean (width, length, height) in metres of each class in the real training set, and the relative spread used here.
CLASS_SIZES: dict[str, tuple[float, float, float, float]] = {
    "car": (1.95, 4.60, 1.73, 0.06),
    "truck": (2.51, 6.93, 2.84, 0.09),
    "construction_vehicle": (2.73, 6.37, 3.19, 0.08),
    "bus": (2.94, 11.19, 3.47, 0.05),
    "trailer": (2.87, 12.29, 3.87, 0.07),
    "barrier": (2.53, 0.50, 0.98, 0.08),
    "motorcycle": (0.77, 2.11, 1.47, 0.07),
    "bicycle": (0.60, 1.70, 1.28, 0.07),
    "pedestrian": (0.67, 0.73, 1.77, 0.07),
    "traffic_cone": (0.41, 0.41, 1.07, 0.08),
}

VEHICLE_CLASSES: tuple[str, ...] = ("car", "truck", "construction_vehicle", "bus", "trailer")
CYCLE_CLASSES: tuple[str, ...] = ("motorcycle", "bicycle")


def visibility_token(visible: int, total: int) -> str:
    """Return the visibility token ("1" to "4") of an object of which `visible` of `total` pixels are seen."""
    fraction = visible / total if total else 0.0
    return "4" if fraction >= 0.8 else "3" if fraction >= 0.6 else "2" if fraction >= 0.4 else "1"

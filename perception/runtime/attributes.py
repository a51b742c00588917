"""nuScenes' attribute of a box, by its class and speed: the one rule of evaluation and runtime."""

MOVING_SPEED = 0.2
"""Speed, m/s, above which an object counts as moving (mmdet3d's rule)."""

_VEHICLE = ("vehicle.moving", "vehicle.parked")
_CYCLE = ("cycle.with_rider", "cycle.without_rider")
ATTRIBUTES: dict[str, tuple[str, str]] = {
    "car": _VEHICLE,
    "truck": _VEHICLE,
    "construction_vehicle": _VEHICLE,
    "bus": ("vehicle.moving", "vehicle.stopped"),
    "trailer": _VEHICLE,
    "barrier": ("", ""),
    "motorcycle": _CYCLE,
    "bicycle": _CYCLE,
    "pedestrian": ("pedestrian.moving", "pedestrian.standing"),
    "traffic_cone": ("", ""),
}
"""Per class: attribute of a moving and of a still object."""


def attribute_of(name: str, speed: float) -> str:
    """Attribute of a box; "" for a class that has none.

    Args:
        name: class.
        speed: m/s.

    Example:
        >>> attribute_of("bus", 0.1), attribute_of("pedestrian", 1.0), attribute_of("barrier", 0.0)
        ('vehicle.stopped', 'pedestrian.moving', '')
    """
    moving, still = ATTRIBUTES.get(name, ("", ""))
    return moving if speed > MOVING_SPEED else still

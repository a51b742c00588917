"""Colours of classes and maps. All BGR, as OpenCV draws; chosen to differ in hue and in lightness."""

from collections.abc import Mapping

import numpy as np

from perception.structures import CLASS_NAMES, MAP_CLASSES

Colour = tuple[int, int, int]


def from_hex(code: str) -> Colour:
    """'#rrggbb' → (b, g, r).

    Example:
        >>> from_hex("#ff8000")
        (0, 128, 255)
    """
    return int(code[5:7], 16), int(code[3:5], 16), int(code[1:3], 16)


def to_hex(colour: Colour) -> str:
    """(b, g, r) → '#rrggbb'."""
    blue, green, red = colour
    return f"#{red:02x}{green:02x}{blue:02x}"


CLASS_COLOURS: dict[str, Colour] = {
    "car": from_hex("#ff9f1c"),
    "truck": from_hex("#ff5d47"),
    "construction_vehicle": from_hex("#c98b5e"),
    "bus": from_hex("#ffe14d"),
    "trailer": from_hex("#e0569b"),
    "barrier": from_hex("#a9b4c2"),
    "motorcycle": from_hex("#b07cff"),
    "bicycle": from_hex("#6f9bff"),
    "pedestrian": from_hex("#3ddc97"),
    "traffic_cone": from_hex("#4dd8f0"),
}
"""Colour per detection class."""

MAP_COLOURS: dict[str, Colour] = {
    "divider": from_hex("#f4c95d"),
    "ped_crossing": from_hex("#5fb0ff"),
    "boundary": from_hex("#ff6b8b"),
    "drivable_area": from_hex("#5b6b7f"),
}
"""Colour per map class; background has none."""

BOX_COLOURS_2D: dict[str, Colour] = {
    "pedestrian": from_hex("#3ddc97"),
    "rider": from_hex("#ff6b8b"),
    "car": from_hex("#ff9f1c"),
    "truck": from_hex("#ff5d47"),
    "bus": from_hex("#ffe14d"),
    "train": from_hex("#e0569b"),
    "motorcycle": from_hex("#b07cff"),
    "bicycle": from_hex("#6f9bff"),
    "traffic light": from_hex("#4dd8f0"),
    "traffic sign": from_hex("#d8b48a"),
}
"""Colour per box class of BDD100K."""

SEG_COLOURS: dict[str, Colour] = {
    "road": from_hex("#804080"),
    "sidewalk": from_hex("#f423e8"),
    "building": from_hex("#464646"),
    "wall": from_hex("#66669c"),
    "fence": from_hex("#be9999"),
    "pole": from_hex("#999999"),
    "traffic light": from_hex("#faaa1e"),
    "traffic sign": from_hex("#dcdc00"),
    "vegetation": from_hex("#6b8e23"),
    "terrain": from_hex("#98fb98"),
    "sky": from_hex("#4682b4"),
    "person": from_hex("#dc143c"),
    "rider": from_hex("#ff0000"),
    "car": from_hex("#00008e"),
    "truck": from_hex("#000046"),
    "bus": from_hex("#003c64"),
    "train": from_hex("#005064"),
    "motorcycle": from_hex("#0000e6"),
    "bicycle": from_hex("#770b20"),
}
"""Colour per segmentation class: those that Cityscapes and BDD100K draw their own colour maps with."""

TRUTH_COLOUR: Colour = from_hex("#f5f7fa")
"""Ground truth where predictions hold the class colours."""

PAPER: Colour = from_hex("#14181f")
PANEL: Colour = from_hex("#1c222c")
GRID: Colour = from_hex("#303947")
TEXT: Colour = from_hex("#dfe5ee")
FAINT_TEXT: Colour = from_hex("#8b96a7")
EGO: Colour = from_hex("#dfe5ee")


def class_colours(
    names: tuple[str, ...] = CLASS_NAMES, known: Mapping[str, Colour] = CLASS_COLOURS
) -> list[Colour]:
    """Colours in the order of the labels; names that are not known get known colours in turn."""
    spare = list(known.values())
    return [known.get(name, spare[index % len(spare)]) for index, name in enumerate(names)]


def map_lookup(names: tuple[str, ...] = MAP_CLASSES) -> np.ndarray:
    """(num_classes, 3), uint8 BGR: the colour of each map class, black for the background."""
    spare = list(MAP_COLOURS.values())
    colours = [MAP_COLOURS.get(name, spare[index % len(spare)]) for index, name in enumerate(names[1:])]
    return np.array([(0, 0, 0), *colours], dtype=np.uint8)

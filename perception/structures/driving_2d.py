"""Words and units of boxes and masks in an image: BDD100K's classes, and the two meanings of a box's far edge."""

import numpy as np

BDD_BOX_CLASSES = (
    "pedestrian",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
    "traffic light",
    "traffic sign",
)
"""BDD100K's ten box classes in the order of their labels 0…9; its own category ids are one larger."""

BDD_SEG_CLASSES = (
    "road",
    "sidewalk",
    "building",
    "wall",
    "fence",
    "pole",
    "traffic light",
    "traffic sign",
    "vegetation",
    "terrain",
    "sky",
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
)
"""BDD100K's 19 segmentation classes, those of Cityscapes, in the order of a mask's values 0…18."""

IGNORE_SEG = 255
"""Value of a mask's pixel that counts neither in a loss nor in a metric."""

_FAR_EDGES = (0, 0, 1, 1)


def inclusive2exclusive(boxes: np.ndarray) -> np.ndarray:
    """Boxes as Scalabel writes them → boxes as this project computes with them.

    Scalabel's x2 and y2 are the last pixels inside, so a width is x2 − x1 + 1; ours are the edges behind them.

    *Source*: `box2d_to_xyxy` of scalabel 0.3.1.

    Args:
        boxes: (..., 4) x1, y1, x2, y2 in pixels, floating point.

    Example:
        >>> inclusive2exclusive(np.array([[10.0, 20.0, 10.0, 29.0]])).tolist()
        [[10.0, 20.0, 11.0, 30.0]]
    """
    return boxes + np.array(_FAR_EDGES, dtype=boxes.dtype)


def exclusive2inclusive(boxes: np.ndarray) -> np.ndarray:
    """The way back, for files in Scalabel's format.

    Args:
        boxes: (..., 4) x1, y1, x2, y2 in pixels, floating point; float64 loses nothing.

    Example:
        >>> exclusive2inclusive(np.array([10.0, 20.0, 11.0, 30.0])).tolist()
        [10.0, 20.0, 10.0, 29.0]
    """
    return boxes - np.array(_FAR_EDGES, dtype=boxes.dtype)

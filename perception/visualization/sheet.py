"""One sheet per sample: six cameras as the rig sees them, the scene from above, and a legend."""

from collections.abc import Mapping, Sequence
from functools import partial

import cv2
import numpy as np

from perception.structures import CLASS_NAMES, MAP_CLASSES, MapGrid, resize_matrix
from perception.visualization.bev import BEVView, draw_bev
from perception.visualization.boxes_on_image import draw_boxes_on_image
from perception.visualization.canvas import blank, check_image, draw_segments, draw_text, fit, text_width
from perception.visualization.map_on_image import GROUND_Z, draw_map_on_image
from perception.visualization.palette import (
    FAINT_TEXT,
    PAPER,
    TRUTH_COLOUR,
    Colour,
    class_colours,
    map_lookup,
)

CAMERA_ROWS = (
    ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT"),
    ("CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT"),
)
"""The cameras as they stand on the rig, seen from above; rear cameras look backwards."""

_GAP = 6
_LEGEND = 34
_LINE = 22
_HEADER = 40


def draw_sample(
    images: Mapping[str, np.ndarray],
    lidar2img: Mapping[str, np.ndarray],
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray | None = None,
    map_mask: np.ndarray | None = None,
    *,
    gt_boxes: np.ndarray | None = None,
    gt_labels: np.ndarray | None = None,
    gt_map_mask: np.ndarray | None = None,
    score_threshold: float = 0.3,
    class_names: tuple[str, ...] = CLASS_NAMES,
    map_classes: tuple[str, ...] = MAP_CLASSES,
    map_grid: MapGrid | None = None,
    ground_z: float = GROUND_Z,
    bev_range: float = 51.2,
    cell_width: int = 512,
    is_tall: bool = False,
    title: str = "",
) -> np.ndarray:
    """Sheet of a sample: cameras left, bird's-eye view right, or below.

    With ground truth, there are two views from above, truth and prediction; in the cameras, predictions are
    solid in class colours and the truth is dashed white, so the two cannot be mistaken. Without it, the given
    boxes are the only ones.

    Args:
        images: camera name → (H, W, 3), uint8, BGR; missing cameras leave an empty place.
        lidar2img: camera name → (4, 4), to pixels of that image.
        boxes: (n, 7 or 9), LiDAR frame, bottom-centre: predictions, or the truth when it is all there is.
        labels: (n,), int.
        scores: (n,); boxes below `score_threshold` are not drawn. None draws all.
        map_mask: (rows, columns), int, map classes.
        gt_boxes: (m, 7 or 9), ground truth to compare with.
        gt_labels: (m,), int.
        gt_map_mask: (rows, columns), int, ground truth to compare with.
        score_threshold: lowest score drawn.
        class_names: names of the labels.
        map_classes: names of the map classes, background first.
        map_grid: grid of the masks; the default `MapGrid` if None.
        ground_z: height of the ground, LiDAR frame, metres.
        bev_range: the view from above shows ±bev_range, metres.
        cell_width: width of one camera's picture, pixels.
        is_tall: the view from above is below the cameras, for narrow pages.
        title: written above.

    Returns:
        (H, W, 3), uint8, BGR.

    Raises:
        ValueError: no image is given, one is not uint8 BGR, a camera has no `lidar2img`, or numbers of boxes,
            labels and scores differ.
    """
    _check(images, lidar2img, boxes, labels, scores, gt_boxes, gt_labels)
    if scores is not None:
        is_kept = np.asarray(scores) >= score_threshold
        boxes, labels = np.asarray(boxes)[is_kept], np.asarray(labels)[is_kept]
    palette = class_colours(class_names)
    colours = [palette[int(label)] for label in labels]
    has_truth = gt_boxes is not None or gt_map_mask is not None
    shape = next(iter(images.values())).shape
    cell_height = round(cell_width * shape[0] / shape[1])

    cameras = blank(2 * cell_height + _GAP, 3 * cell_width + 2 * _GAP, PAPER)
    for row, names in enumerate(CAMERA_ROWS):
        for column, name in enumerate(names):
            if name not in images:
                continue
            cell, projection = _scaled(images[name], lidar2img[name], cell_height, cell_width)
            if map_mask is not None:
                cell = draw_map_on_image(
                    cell, projection, mask=map_mask, grid=map_grid, ground_z=ground_z, class_names=map_classes
                )
            if gt_boxes is not None:
                white = [TRUTH_COLOUR] * len(gt_boxes)
                cell = draw_boxes_on_image(cell, gt_boxes, projection, white, thickness=1, fill=0.0, dash=5.0)
            cell = draw_boxes_on_image(
                cell, boxes, projection, colours, thickness=1 if cell_width < 700 else 2
            )
            _tag(cell, name.removeprefix("CAM_").replace("_", " "))
            top, left = row * (cell_height + _GAP), column * (cell_width + _GAP)
            cameras[top : top + cell_height, left : left + cell_width] = cell

    side = (cameras.shape[1] - _GAP) // 2 if is_tall else cameras.shape[0]
    view = BEVView(
        x_range=(-bev_range, bev_range),
        y_range=(-bev_range, bev_range),
        pixels_per_metre=side / (2 * bev_range),
    )
    paint = partial(draw_bev, view, map_grid=map_grid, map_classes=map_classes)
    panels = []
    if has_truth:
        truth = np.zeros((0, 9)) if gt_boxes is None else gt_boxes
        truth_colours = [palette[int(label)] for label in (() if gt_labels is None else gt_labels)]
        panels.append(paint(truth, truth_colours, map_mask=gt_map_mask, title="Ground truth"))
    name = "Prediction" if has_truth or scores is not None else "Bird's-eye view"
    panels.append(paint(boxes, colours, map_mask=map_mask, title=name))
    views = _beside([fit(panel, side, side, PAPER) for panel in panels])
    body = _below(cameras, views) if is_tall else _beside([cameras, views])
    legend = _legend(
        body.shape[1],
        class_names,
        palette,
        map_classes if _any(map_mask, gt_map_mask) else (),
        gt_boxes is not None,
    )
    sheet = np.concatenate([_header(body.shape[1], title, len(boxes), scores, score_threshold), body, legend])
    return cv2.copyMakeBorder(sheet, 0, 0, 2 * _GAP, 2 * _GAP, cv2.BORDER_CONSTANT, value=PAPER)


def contact_sheet(
    images: Sequence[np.ndarray], *, columns: int = 3, cell_width: int = 480, captions: Sequence[str] = ()
) -> np.ndarray:
    """Images side by side and below each other, each fitted into a cell of the first one's proportions.

    Args:
        images: (H, W, 3), uint8, BGR each.
        columns: images per row.
        cell_width: pixels.
        captions: written below the images, in order; may be shorter.

    Raises:
        ValueError: there is no image, or one is not uint8 BGR.
    """
    if not len(images):
        raise ValueError("contact_sheet needs at least one image, got none.")
    for index, image in enumerate(images):
        check_image(image, f"images[{index}]")
    cell_height = max(1, round(cell_width * images[0].shape[0] / images[0].shape[1]))
    caption_height = 26 if captions else 0
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    step_y, step_x = cell_height + caption_height + _GAP, cell_width + _GAP
    sheet = blank(rows * step_y + _GAP, columns * step_x + _GAP, PAPER)
    for index, image in enumerate(images):
        top, left = _GAP + index // columns * step_y, _GAP + index % columns * step_x
        sheet[top : top + cell_height, left : left + cell_width] = fit(image, cell_height, cell_width, PAPER)
        if index < len(captions):
            draw_text(sheet, captions[index], (left + 4, top + cell_height + 13), size=13, anchor="lm")
    return sheet


def _check(
    images: Mapping[str, np.ndarray],
    lidar2img: Mapping[str, np.ndarray],
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray | None,
    gt_boxes: np.ndarray | None,
    gt_labels: np.ndarray | None,
) -> None:
    known = {name for row in CAMERA_ROWS for name in row}
    if not images or not set(images) <= known:
        raise ValueError(
            f"images must be keyed by camera names, got {sorted(images) or 'none'}. Allowed: "
            f"{', '.join(sorted(known))}."
        )
    for name, image in images.items():
        check_image(image, f"images[{name!r}]")
        if name not in lidar2img:
            raise ValueError(f"lidar2img has no {name}; found {sorted(lidar2img)}.")
    if len(boxes) != len(labels) or (scores is not None and len(scores) != len(boxes)):
        found = "no" if scores is None else len(scores)
        raise ValueError(
            f"{len(boxes)} boxes, {len(labels)} labels and {found} scores do not belong together."
        )
    if gt_boxes is not None and (gt_labels is None or len(gt_labels) != len(gt_boxes)):
        raise ValueError(f"{len(gt_boxes)} gt_boxes need as many gt_labels.")


def _any(*masks: np.ndarray | None) -> bool:
    return any(mask is not None for mask in masks)


def _scaled(
    image: np.ndarray, lidar2img: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    scale = resize_matrix(width / image.shape[1], height / image.shape[0])
    method = cv2.INTER_AREA if width < image.shape[1] else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=method), scale @ np.asarray(lidar2img, np.float64)


def _tag(image: np.ndarray, text: str) -> None:
    width = int(text_width(text, 12, True)) + 14
    corner = image[:22, :width]
    corner[...] = (corner * 0.35).astype(np.uint8)
    draw_text(image, text, (7, 11), size=12, bold=True, anchor="lm")


def _beside(images: Sequence[np.ndarray]) -> np.ndarray:
    gap = blank(images[0].shape[0], _GAP, PAPER)
    parts: list[np.ndarray] = []
    for image in images:
        parts += [image, gap]
    return np.concatenate(parts[:-1], axis=1)


def _below(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The second image, which is no wider, under the middle of the first."""
    space = first.shape[1] - second.shape[1]
    padded = cv2.copyMakeBorder(
        second, _GAP, 0, space // 2, space - space // 2, cv2.BORDER_CONSTANT, value=PAPER
    )
    return np.concatenate([first, padded])


def _header(width: int, title: str, count: int, scores: np.ndarray | None, threshold: float) -> np.ndarray:
    header = blank(_HEADER, width, PAPER)
    draw_text(header, title, (2, _HEADER / 2), size=16, bold=True, anchor="lm")
    note = f"{count} boxes" + ("" if scores is None else f" with score ≥ {threshold:g}, of {len(scores)}")
    draw_text(header, note, (width - 2, _HEADER / 2), size=13, colour=FAINT_TEXT, anchor="rm")
    return header


def _legend(
    width: int, names: Sequence[str], palette: Sequence[Colour], map_names: Sequence[str], has_truth: bool
) -> np.ndarray:
    entries = [(name.replace("_", " "), colour, "box") for name, colour in zip(names, palette, strict=True)]
    lookup = map_lookup(tuple(map_names)) if map_names else np.zeros((1, 3), np.uint8)
    for name, colour in zip(map_names[1:], lookup[1:], strict=True):
        blue, green, red = (int(value) for value in colour)
        entries.append((f"map: {name.replace('_', ' ')}", (blue, green, red), "line"))
    if has_truth:
        entries.append(("ground truth (cameras)", TRUTH_COLOUR, "dash"))
    rows: list[list[tuple[float, str, Colour, str]]] = [[]]
    x = 2.0
    for text, colour, kind in entries:
        step = (19 if kind == "box" else 23) + text_width(text, 13) + 16
        if rows[-1] and x + step > width:
            rows.append([])
            x = 2.0
        rows[-1].append((x, text, colour, kind))
        x += step
    legend = blank(_LEGEND + (len(rows) - 1) * _LINE, width, PAPER)
    for number, row in enumerate(rows):
        for x, text, colour, kind in row:
            _legend_entry(legend, x, _LEGEND // 2 + number * _LINE, text, colour, kind)
    return legend


def _legend_entry(legend: np.ndarray, x: float, middle: int, text: str, colour: Colour, kind: str) -> None:
    if kind == "box":
        cv2.rectangle(legend, (int(x), middle - 6), (int(x) + 12, middle + 6), colour, -1)
    else:
        line = np.array([[[x, middle], [x + 16.0, middle]]])
        draw_segments(legend, line, colour, 3 if kind == "line" else 2, 4.0 if kind == "dash" else 0.0)
    draw_text(legend, text, (x + (19 if kind == "box" else 23), middle), size=13, anchor="lm")

"""One sheet per picture: its boxes and its segmentation, the truth, predictions and pseudo labels side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from perception.structures import BDD_BOX_CLASSES, BDD_SEG_CLASSES
from perception.visualization.canvas import blank, check_image, draw_segments, draw_text, text_width
from perception.visualization.palette import (
    BOX_COLOURS_2D,
    FAINT_TEXT,
    PAPER,
    SEG_COLOURS,
    TRUTH_COLOUR,
    Colour,
    class_colours,
)

_GAP = 6
_HEADER = 34
_CAPTION = 24
_LINE = 20
_SEG_OPACITY = 0.55
_MIN_SCORE_WIDTH = 24  # pixels; the score is not written into narrower boxes


@dataclass(frozen=True)
class ImageLabels:
    """What one panel shows. None means that there are no labels of this kind, which is not the same as an empty list.

    Attributes:
        title: e.g. "Ground truth".
        boxes: (n, 4) x1, y1, x2, y2, pixels of the image, far edges outside.
        labels: (n,) int.
        scores: (n,), of predictions.
        ignored: (m, 4) boxes whose places do not count.
        sem_seg: (H, W) int: class of each pixel; values that are no class (255) stay without a colour.
    """

    title: str
    boxes: np.ndarray | None = None
    labels: np.ndarray | None = None
    scores: np.ndarray | None = None
    ignored: np.ndarray | None = None
    sem_seg: np.ndarray | None = None


def draw_image_sample(
    image: np.ndarray,
    layers: Sequence[ImageLabels],
    *,
    score_threshold: float = 0.3,
    box_classes: tuple[str, ...] = BDD_BOX_CLASSES,
    seg_classes: tuple[str, ...] = BDD_SEG_CLASSES,
    panel_width: int = 720,
    is_tall: bool = False,
    title: str = "",
) -> np.ndarray:
    """Sheet of a picture: one panel per set of labels, and a legend of the classes that occur.

    Args:
        image: (H, W, 3), uint8, BGR.
        layers: the sets of labels, from left to right.
        score_threshold: lowest score drawn.
        box_classes: names of the boxes' labels.
        seg_classes: names of the masks' values.
        panel_width: width of one panel, pixels.
        is_tall: the panels are below each other, for narrow pages.
        title: written above.

    Returns:
        (H', W', 3), uint8, BGR.

    Raises:
        ValueError: the image is not uint8 BGR, there is no layer, or a layer's boxes, labels, scores or mask do not fit
            together or to the image.

    Example:
        >>> grey = np.full((36, 64, 3), 128, np.uint8)
        >>> truth = ImageLabels("Ground truth", boxes=np.array([[8.0, 8, 24, 20]]), labels=np.array([2]))
        >>> draw_image_sample(grey, [truth], panel_width=320).shape[1]
        332
    """
    check_image(image)
    if not layers:
        raise ValueError("draw_image_sample needs at least one set of labels, got none.")
    for layer in layers:
        _check(layer, image.shape)
    shown = [_above(layer, score_threshold) for layer in layers]
    box_palette = class_colours(box_classes, BOX_COLOURS_2D)
    seg_palette = class_colours(seg_classes, SEG_COLOURS)
    panels = []
    for layer, all_of_it in zip(shown, layers, strict=True):
        panel = _panel(image, layer, box_palette, seg_palette, panel_width)
        caption = _caption(panel.shape[1], layer, all_of_it, score_threshold)
        gap = blank(_GAP, panel_width, PAPER) if is_tall else blank(len(caption) + len(panel), _GAP, PAPER)
        panels += [np.concatenate([caption, panel]), gap]
    body = np.concatenate(panels[:-1], axis=0 if is_tall else 1)
    header = blank(_HEADER, body.shape[1], PAPER)
    draw_text(header, title, (2, _HEADER / 2), size=16, bold=True, anchor="lm")
    legend = _legend(body.shape[1], shown, box_classes, box_palette, seg_classes, seg_palette)
    sheet = np.concatenate([header, body, legend])
    return cv2.copyMakeBorder(sheet, 0, _GAP, _GAP, _GAP, cv2.BORDER_CONSTANT, value=PAPER)


def overlay_segmentation(
    image: np.ndarray, sem_seg: np.ndarray, colours: Sequence[Colour], *, opacity: float = _SEG_OPACITY
) -> np.ndarray:
    """A copy of the image, its pixels tinted by class; values beyond the colours are left as they are.

    Args:
        image: (H, W, 3), uint8, BGR.
        sem_seg: (H, W), int.
        colours: BGR, by class.
        opacity: 0…1.
    """
    table = np.zeros((256, 3), np.float32)
    table[: len(colours)] = colours
    share = np.zeros(256, np.float32)
    share[: len(colours)] = opacity
    index = np.clip(sem_seg, 0, 255).astype(np.uint8)
    mixed = image + (table[index] - image) * share[index][..., None]
    return mixed.round().astype(np.uint8)


def _check(layer: ImageLabels, shape: tuple[int, ...]) -> None:
    if layer.boxes is not None:
        counts = [len(part) for part in (layer.labels, layer.scores) if part is not None]
        if layer.labels is None or any(count != len(layer.boxes) for count in counts):
            raise ValueError(
                f"{layer.title}: {len(layer.boxes)} boxes need as many labels (and scores), got {counts or 'none'}."
            )
    if layer.sem_seg is not None and layer.sem_seg.shape != shape[:2]:
        raise ValueError(
            f"{layer.title}: the mask is {layer.sem_seg.shape[1]}×{layer.sem_seg.shape[0]}, the image "
            f"{shape[1]}×{shape[0]}."
        )


def _above(layer: ImageLabels, threshold: float) -> ImageLabels:
    if layer.boxes is None or layer.labels is None or layer.scores is None:
        return layer
    keep = np.asarray(layer.scores) >= threshold
    return ImageLabels(
        layer.title, layer.boxes[keep], layer.labels[keep], layer.scores[keep], layer.ignored, layer.sem_seg
    )


def _panel(
    image: np.ndarray,
    layer: ImageLabels,
    box_palette: Sequence[Colour],
    seg_palette: Sequence[Colour],
    width: int,
) -> np.ndarray:
    factor = width / image.shape[1]
    size = (width, max(1, round(image.shape[0] * factor)))
    panel = cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)
    if layer.sem_seg is not None:
        mask = np.clip(layer.sem_seg, 0, 255).astype(np.uint8)
        panel = overlay_segmentation(
            panel, cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT), seg_palette
        )
    scale = np.array([size[0] / image.shape[1], size[1] / image.shape[0]] * 2)
    for box in () if layer.ignored is None else layer.ignored * scale:
        _rectangle(panel, box, FAINT_TEXT, dash=5.0)
    if layer.boxes is None or layer.labels is None:
        return panel
    areas = np.prod(np.maximum(layer.boxes[:, 2:] - layer.boxes[:, :2], 0), axis=1)
    for index in np.argsort(-areas, kind="stable"):  # small ones on top
        box, colour = layer.boxes[index] * scale, box_palette[int(layer.labels[index])]
        _rectangle(panel, box, colour)
        if layer.scores is not None and box[2] - box[0] >= _MIN_SCORE_WIDTH:
            _score(panel, box, f"{layer.scores[index]:.2f}", colour)
    return panel


def _rectangle(panel: np.ndarray, box: np.ndarray, colour: Colour, dash: float = 0.0) -> None:
    x1, y1, x2, y2 = box
    corners = np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)])
    draw_segments(panel, np.stack([corners, np.roll(corners, -1, axis=0)], axis=1), colour, 1, dash)


def _score(panel: np.ndarray, box: np.ndarray, text: str, colour: Colour) -> None:
    left, top = max(0, int(box[0])), int(box[1]) - 12
    top = top if top >= 0 else int(max(box[1], 0)) + 1
    tag = panel[top : top + 12, left : left + 25]
    if tag.shape[0] < 12 or tag.shape[1] < 25:
        return
    tag[...] = (tag * 0.3).astype(np.uint8)
    draw_text(tag, text, (12, 6), size=10, colour=colour, anchor="mm")


def _caption(width: int, shown: ImageLabels, given: ImageLabels, threshold: float) -> np.ndarray:
    caption = blank(_CAPTION, width, PAPER)
    draw_text(caption, given.title, (2, _CAPTION / 2), size=13, bold=True, anchor="lm")
    if shown.boxes is None or given.boxes is None:
        boxes = "no boxes"
    elif given.scores is None:
        boxes = f"{len(shown.boxes)} boxes"
    else:
        boxes = f"{len(shown.boxes)} boxes with score ≥ {threshold:g}, of {len(given.boxes)}"
    note = f"{boxes} · {'no mask' if given.sem_seg is None else 'mask'}"
    draw_text(caption, note, (width - 2, _CAPTION / 2), size=12, colour=FAINT_TEXT, anchor="rm")
    return caption


def _legend(
    width: int,
    layers: Sequence[ImageLabels],
    box_names: Sequence[str],
    box_palette: Sequence[Colour],
    seg_names: Sequence[str],
    seg_palette: Sequence[Colour],
) -> np.ndarray:
    """Frames for boxes, filled squares for segmentation classes, in as many lines as they need."""
    boxes = {int(label) for layer in layers if layer.boxes is not None for label in layer.labels}  # type: ignore[union-attr]
    masks = [layer.sem_seg for layer in layers if layer.sem_seg is not None]
    found = np.unique(np.concatenate([np.unique(mask) for mask in masks])) if masks else ()
    entries: list[tuple[str, Colour, bool]] = [(box_names[k], box_palette[k], False) for k in sorted(boxes)]
    entries += [(seg_names[int(k)], seg_palette[int(k)], True) for k in found if 0 <= k < len(seg_names)]
    if any(layer.ignored is not None and len(layer.ignored) for layer in layers):
        entries.append(("ignored", FAINT_TEXT, False))
    rows: list[list[tuple[float, str, Colour, bool]]] = [[]]
    x = 4.0
    for text, colour, is_filled in entries:
        step = 18 + text_width(text, 12) + 14
        if rows[-1] and x + step > width:
            rows.append([])
            x = 4.0
        rows[-1].append((x, text, colour, is_filled))
        x += step
    legend = blank(len(rows) * _LINE + _GAP, width, PAPER)
    for number, row in enumerate(rows):
        middle = _GAP + number * _LINE + _LINE // 2
        for x, text, colour, is_filled in row:
            first, last = (int(x), middle - 5), (int(x) + 10, middle + 5)
            cv2.rectangle(legend, first, last, colour, -1 if is_filled else 2)
            if is_filled:  # dark colours would vanish on the paper
                cv2.rectangle(legend, first, last, TRUTH_COLOUR, 1)
            draw_text(legend, text, (x + 16, middle), size=12, anchor="lm")
    return legend

"""Sheets of single pictures with 2D labels: the truth, predictions and pseudo labels side by side."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from mmdet.structures import DetDataSample
from mmdet3d.structures import Det3DDataSample

from perception.datasets.transforms import read_image, resize_mask
from perception.visualization import ImageLabels, draw_image_sample


def is_image_item(item: Mapping[str, Any]) -> bool:
    """Whether a packed item is one picture with 2D labels, as `PackImageInputs` makes it."""
    sample = item["data_samples"]
    return isinstance(sample, DetDataSample) and not isinstance(sample, Det3DDataSample)  # its subclass


def draw_image_item(
    item: Mapping[str, Any],
    dataset: Any,
    *,
    prediction: Any | None = None,
    score_threshold: float = 0.3,
    is_tall: bool = False,
) -> np.ndarray:
    """The sheet of a packed item, as training sees it; or with a prediction, in the pixels of the file.

    Args:
        item: `inputs` and `data_samples` as `PackImageInputs` makes them.
        dataset: the dataset it comes from.
        prediction: data sample with `pred_instances` or `pred_sem_seg`, in pixels of the file.
        score_threshold: boxes below are not drawn.
        is_tall: the panels are below each other.

    Returns:
        (H, W, 3) uint8 BGR.
    """
    sample = item["data_samples"]
    metainfo = sample.metainfo
    scale, shape = (1.0, 1.0), None
    if prediction is None:
        image = item["inputs"]["img"].permute(1, 2, 0).contiguous().numpy()  # (H, W, 3)
    else:
        image = read_image(metainfo["img_path"], sample_token=metainfo["frame_name"])
        scale, shape = metainfo["scale_factor"], image.shape
    layers = [_layer("Ground truth", sample, "gt", scale, shape)]
    if prediction is not None:
        layers.append(_layer("Prediction", prediction, "pred", (1.0, 1.0), shape))
    if "pseudo_instances" in sample or "pseudo_sem_seg" in sample:
        layers.append(_layer("Pseudo labels", sample, "pseudo", scale, shape))
    names = dataset.metainfo
    return draw_image_sample(
        image,
        layers,
        score_threshold=score_threshold,
        box_classes=tuple(names["classes"]),
        seg_classes=tuple(names["seg_classes"]),
        is_tall=is_tall,
        title=metainfo["frame_name"],
    )


def image_record(prediction: Any, class_names: tuple[str, ...], *, num: int) -> list[dict[str, Any]]:
    """The best boxes of a prediction as plain values."""
    layer = _layer("", prediction, "pred", (1.0, 1.0), None)
    if layer.boxes is None or layer.labels is None or layer.scores is None:
        return []
    best = np.argsort(-layer.scores, kind="stable")[:num]
    return [
        {
            "class": class_names[int(layer.labels[i])],
            "score": round(float(layer.scores[i]), 4),
            "box": [round(float(edge), 2) for edge in layer.boxes[i]],
        }
        for i in best
    ]


def _layer(
    title: str, sample: Any, prefix: str, scale: tuple[float, float], shape: tuple[int, ...] | None
) -> ImageLabels:
    """Boxes and mask of one kind, in the pixels of an image that the sample's is `scale` times as large as."""
    boxes = labels = scores = ignored = mask = None
    if f"{prefix}_instances" in sample:
        found = sample.get(f"{prefix}_instances")
        boxes = _array(found.bboxes).astype(np.float64)
        keep = np.isfinite(boxes).all(axis=1)  # a diverged model's cannot be drawn
        scores = _array(found.scores).astype(np.float64) if "scores" in found else None
        if scores is not None:
            keep &= np.isfinite(scores)
            scores = scores[keep]
        boxes, labels = boxes[keep] / (*scale, *scale), _array(found.labels)[keep]
    if prefix == "gt" and "ignored_instances" in sample:
        ignored = _array(sample.ignored_instances.bboxes).astype(np.float64) / (*scale, *scale)
    if f"{prefix}_sem_seg" in sample:
        mask = _array(sample.get(f"{prefix}_sem_seg").sem_seg)[0]
        if shape is not None and mask.shape != shape[:2]:
            mask = resize_mask(mask, (shape[1], shape[0]))
    return ImageLabels(title, boxes, labels, scores, ignored, mask)


def _array(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy()

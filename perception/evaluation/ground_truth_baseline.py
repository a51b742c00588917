"""The ground truth, given back as predictions: the highest score that the metrics allow."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.structures import InstanceData, PixelData

from perception.structures import CLASS_NAMES


def ground_truth_predictions(dataset: Any) -> Iterator[Det3DDataSample]:
    """Each sample of a dataset with its own ground truth as prediction, score 1.

    Boxes come from the index where the dataset gives it (`get_data_info(i)["instances"]`: all boxes, also
    those without a point, and their attributes), else from `gt_instances_3d`. Scored by the official
    evaluator, mAP then falls short of 1 only by boxes without points (which the evaluator drops from the
    ground truth) and by classes that do not occur; mIoU is 1.

    Args:
        dataset: gives `{"data_samples": Det3DDataSample}` by index, built with the test pipeline.

    Yields:
        Data samples with `pred_instances_3d` and, where there is a map, `pred_bev_seg`.
    """
    label_map = _label_map(dataset)
    for index in range(len(dataset)):
        sample = dataset[index]["data_samples"]
        instances = index_instances(dataset, index)
        if instances is None:
            yield with_prediction(sample, **_from_sample(sample))
        else:
            yield with_prediction(sample, **_from_index(instances, label_map))


def with_prediction(
    sample: Det3DDataSample,
    *,
    boxes: torch.Tensor,
    labels: torch.Tensor,
    scores: torch.Tensor,
    attributes: Sequence[str] | None = None,
    mask: torch.Tensor | None = None,
) -> Det3DDataSample:
    """A copy of a data sample that carries the given prediction.

    Args:
        sample: keeps its ground truth and metadata; not changed.
        boxes: (n, 9), LiDAR frame, bottom-centre.
        labels: (n,), long.
        scores: (n,).
        attributes: (n,) names, or None to leave them to the metric's rule.
        mask: (1, rows, columns), long; by default the sample's ground truth, if it has one.
    """
    predicted = InstanceData()
    predicted.bboxes_3d = LiDARInstance3DBoxes(boxes, box_dim=9)
    predicted.scores_3d = scores
    predicted.labels_3d = labels
    if attributes is not None:
        predicted.attributes = list(attributes)
    copy = sample.new()
    copy.pred_instances_3d = predicted
    if mask is None and copy.get("gt_bev_seg", None) is not None:
        mask = copy.gt_bev_seg.sem_seg.clone()
    if mask is not None:
        copy.pred_bev_seg = PixelData(sem_seg=mask)
    return copy


def dataset_classes(dataset: Any) -> tuple[str, ...]:
    """Class names of a dataset, BEVFormer's where it does not say."""
    return tuple((getattr(dataset, "metainfo", None) or {}).get("classes", CLASS_NAMES))


def index_instances(dataset: Any, index: int) -> list[Mapping[str, Any]] | None:
    """The index's instances of a sample, or None where the dataset does not give them."""
    get_data_info = getattr(dataset, "get_data_info", None)
    if get_data_info is None:
        return None
    instances = get_data_info(index).get("instances")
    return None if instances is None else list(instances)


def _from_sample(sample: Det3DDataSample) -> dict[str, Any]:
    truth = sample.gt_instances_3d
    boxes = truth.bboxes_3d.tensor.clone()
    return {"boxes": boxes, "labels": truth.labels_3d.clone(), "scores": torch.ones(len(boxes))}


def _label_map(dataset: Any) -> dict[int, int]:
    """Labels of the index (by its `categories`) → labels of the dataset; equal where the index names no categories."""
    names = dataset_classes(dataset)
    categories = (getattr(dataset, "metainfo", None) or {}).get("categories")
    if not categories:
        return {label: label for label in range(len(names))}
    return {label: names.index(name) for name, label in categories.items() if name in names}


def _from_index(instances: Sequence[Mapping[str, Any]], label_map: Mapping[int, int]) -> dict[str, Any]:
    rows, labels, attributes = [], [], []
    for instance in instances:
        label = label_map.get(instance.get("bbox_label_3d", instance.get("bbox_label", -1)))
        if label is None:
            continue  # a category outside the classes
        x, y, z, length, width, height, yaw = instance["bbox_3d"]
        velocity = instance.get("velocity")
        vx, vy = (np.nan, np.nan) if velocity is None else velocity
        rows.append([x, y, z - height / 2, length, width, height, yaw, vx, vy])
        labels.append(label)
        attributes.append(instance.get("attribute") or "")
    return {
        "boxes": torch.tensor(rows, dtype=torch.float32).reshape(-1, 9),
        "labels": torch.tensor(labels, dtype=torch.long),
        "scores": torch.ones(len(rows)),
        "attributes": attributes,
    }

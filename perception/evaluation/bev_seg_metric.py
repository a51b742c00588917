"""mIoU of the map in the bird's-eye view."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from perception.evaluation.gathered_metric import GatheredMetric, logger
from perception.registry import METRICS
from perception.structures import MAP_CLASSES, MapGrid


def count_matches(
    prediction: np.ndarray, truth: np.ndarray, num_classes: int, ignore_index: int = 255
) -> np.ndarray:
    """True positives, false positives and false negatives of each class.

    Args:
        prediction: (rows, columns), int, classes.
        truth: same shape, int, classes; pixels of `ignore_index` do not count.
        num_classes: number of classes, background included.
        ignore_index: value of pixels without truth.

    Returns:
        (3, num_classes), int64.

    Raises:
        ValueError: shapes differ or a class is out of range.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"The predicted map has shape {prediction.shape}, the ground truth {truth.shape}.")
    is_valid = truth != ignore_index
    prediction, truth = prediction[is_valid].astype(np.int64), truth[is_valid].astype(np.int64)
    for name, classes in (("predicted map", prediction), ("map ground truth", truth)):
        if classes.size and not (classes.min() >= 0 and classes.max() < num_classes):
            raise ValueError(
                f"The {name} holds classes {classes.min()}...{classes.max()}, allowed are "
                f"0...{num_classes - 1}."
            )
    confusion = np.bincount(truth * num_classes + prediction, minlength=num_classes**2)
    confusion = confusion.reshape(num_classes, num_classes)  # (truth, prediction)
    hits = np.diag(confusion)
    return np.stack([hits, confusion.sum(axis=0) - hits, confusion.sum(axis=1) - hits])


@METRICS.register_module()
class BEVSegMetric(GatheredMetric):
    """IoU per map class from counts over the whole dataset, and their mean without background.

    IoU_c = TP_c / (TP_c + FP_c + FN_c), the counts summed over all pixels of all samples; mIoU is the mean
    over classes 1...3. Keys: `mIoU`, `IoU/divider`, ..., and the numbers of samples with and without map
    ground truth. A class that neither the ground truth nor any prediction holds has no IoU and is left out of
    the mean. Counts are integers, so ranks add up exactly.

    *Source*: BEVFormer's map segmentation evaluation (global TP/FP/FN, background out).

    Args:
        map_grid: the grid that predictions and ground truth must lie on, or its arguments; unchecked if None.
        class_names: names of the classes, background first; by default the dataset's.
        ignore_index: value of ground-truth pixels that do not count.
        subset: only a part of the split is evaluated.

    Example:
        >>> metric = BEVSegMetric(class_names=("background", "road"))
        >>> maps = {"sem_seg": torch.tensor([[[0, 1], [1, 1]]])}
        >>> metric.process(None, [{"sample_token": "a", "gt_bev_seg": maps, "pred_bev_seg": maps}])
        >>> metric.evaluate(size=1)["mIoU"]
        1.0
    """

    classes_key = "map_classes"  # of the dataset's metainfo

    def __init__(
        self,
        *,
        map_grid: MapGrid | Mapping[str, Any] | None = None,
        class_names: tuple[str, ...] | None = None,
        ignore_index: int = 255,
        subset: bool = False,
    ) -> None:
        super().__init__(subset=subset)
        self.map_grid = map_grid if isinstance(map_grid, MapGrid) or map_grid is None else MapGrid(**map_grid)
        self._class_names = class_names
        self.ignore_index = ignore_index

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; the dataset's follow from the way its map is drawn."""
        if self._class_names is not None:
            return tuple(self._class_names)
        return tuple((self.dataset_meta or {}).get(self.classes_key, MAP_CLASSES))

    def process_sample(self, sample: Mapping[str, Any]) -> np.ndarray | None:
        """(3, num_classes) counts of one sample, or None if it has no map ground truth.

        Raises:
            ValueError: the model predicts no map, or shapes differ.
        """
        predicted, truth = sample.get("pred_bev_seg", None), sample.get("gt_bev_seg", None)
        token = sample.get("sample_token", None)
        if predicted is None:
            raise ValueError(
                f"Sample {token} has no pred_bev_seg: the model predicts no map. Remove BEVSegMetric from "
                "the evaluators of a model without a segmentation head."
            )
        if truth is None:
            return None
        prediction, target = _mask(predicted), _mask(truth)
        if self.map_grid is not None and target.shape != self.map_grid.shape:
            raise ValueError(
                f"Sample {token}: the map ground truth has shape {target.shape}, the metric's map_grid "
                f"{self.map_grid.shape}. Use one MapGrid for dataset, model and metric."
            )
        try:
            return count_matches(prediction, target, len(self.class_names), self.ignore_index)
        except ValueError as error:
            raise ValueError(f"Sample {token}: {error}") from error

    def compute_metrics(self, results: dict[str, np.ndarray | None]) -> dict[str, Any]:
        """IoU per class and mIoU; `results` maps sample tokens to counts.

        Raises:
            ValueError: no sample has map ground truth.
        """
        counts = [result for result in results.values() if result is not None]
        num_skipped = len(results) - len(counts)
        if not counts:
            raise ValueError(
                f"None of {len(results)} evaluated samples has map ground truth (gt_bev_seg). Add the map to "
                "the test pipeline (it needs the map expansion), or remove BEVSegMetric."
            )
        if num_skipped:
            logger.warning(
                "BEV segmentation: %d of %d samples have no map and are skipped.", num_skipped, len(results)
            )
        if self.is_subset:
            logger.warning(
                "mIoU is of a subset (%d samples) and not comparable with published values.", len(counts)
            )
        hits, false_positives, false_negatives = np.sum(counts, axis=0)  # each (num_classes,)
        metrics: dict[str, Any] = {}
        for index, name in enumerate(self.class_names[1:], start=1):
            union = int(hits[index] + false_positives[index] + false_negatives[index])
            if union:
                metrics[f"IoU/{name}"] = int(hits[index]) / union
        mean = sum(metrics.values()) / len(metrics) if metrics else 0.0
        return {
            "mIoU": mean,
            **metrics,
            "num_seg_samples": len(counts),
            "num_seg_without_map": num_skipped,
            "seg_comparable": not self.is_subset,
        }

    def score_samples(self, results: dict[str, np.ndarray | None]) -> dict[str, dict[str, float]]:
        """Each sample's mIoU, over the map classes that its ground truth or its prediction holds."""
        scores = {}
        for token, counts in results.items():
            if counts is None:
                continue
            hits, union = counts[0, 1:], counts.sum(axis=0)[1:]
            if union.any():
                scores[token] = {"mIoU": float((hits[union > 0] / union[union > 0]).mean())}
        return scores


def _mask(pixel_data: Mapping[str, Any]) -> np.ndarray:
    """(rows, columns) of a PixelData or its dict."""
    mask = pixel_data.get("sem_seg", None)
    array = mask.detach().cpu().numpy() if isinstance(mask, torch.Tensor) else np.asarray(mask)
    return array.reshape(array.shape[-2:])

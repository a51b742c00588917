"""Baselines that score through the same metrics as a model: a constant, and the ground truth itself."""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from mmdet3d.structures import Det3DDataSample

from perception.evaluation.constant_boxes import ConstantBoxes
from perception.evaluation.constant_map import ConstantMap
from perception.evaluation.gathered_metric import logger
from perception.evaluation.ground_truth_baseline import (
    dataset_classes,
    ground_truth_predictions,
    with_prediction,
)
from perception.structures import MAP_CLASSES

BASELINES = ("constant", "ground-truth")
"""Names that `baseline_predictions` accepts."""


class ConstantPredictor:
    """Predicts for every sample what is most likely on the training split, without looking at images.

    What a model must beat: a world in which it scores well proves nothing.

    Example:
        >>> boxes, constant_map = ConstantBoxes(num_classes=1), ConstantMap(num_classes=2)
        >>> boxes.add(torch.ones(1, 9), torch.tensor([0]))
        >>> constant_map.add(torch.eye(2).numpy())
        >>> predictor = ConstantPredictor(boxes=boxes, constant_map=constant_map)
        >>> predictor.predict(Det3DDataSample()).pred_bev_seg.sem_seg.tolist()
        [[[1, 0], [0, 1]]]
    """

    def __init__(self, *, boxes: ConstantBoxes, constant_map: ConstantMap) -> None:
        self._boxes, self._labels, self._scores = boxes.best()
        self._mask: torch.Tensor | None = None
        if constant_map.num_samples:
            self._mask = torch.from_numpy(constant_map.best()).long()[None]  # (1, rows, columns)

    @classmethod
    def fit(cls, dataset: Any) -> "ConstantPredictor":
        """Count the boxes and maps of a training split.

        Args:
            dataset: the training split, built with the *test* pipeline: augmentation would blur the
                statistics.

        Raises:
            ValueError: a sample is augmented in the bird's-eye view, or the dataset is empty.
        """
        boxes = ConstantBoxes(num_classes=len(dataset_classes(dataset)))
        constant_map = ConstantMap(num_classes=len(MAP_CLASSES))
        for index in range(len(dataset)):
            sample = dataset[index]["data_samples"]
            augmentation = sample.get("bev_aug", None)
            if augmentation is not None and not torch.allclose(
                torch.as_tensor(augmentation, dtype=torch.float64),
                torch.eye(4, dtype=torch.float64),
                atol=1e-6,
            ):
                raise ValueError(
                    f"Sample {sample.get('sample_token', '')} is flipped or rotated (bev_aug): fit the "
                    "constant predictor on the training split with the test pipeline."
                )
            truth = sample.get("gt_instances_3d", None)
            if truth is not None:
                boxes.add(truth.bboxes_3d.tensor, truth.labels_3d)
            if sample.get("gt_bev_seg", None) is not None:
                constant_map.add(sample.gt_bev_seg.sem_seg[0].cpu().numpy())
        if not constant_map.num_samples:
            logger.warning("No training sample has a map: the constant predictor predicts boxes only.")
        return cls(boxes=boxes, constant_map=constant_map)

    def predict(self, sample: Det3DDataSample) -> Det3DDataSample:
        """A copy of the sample with the constant prediction."""
        mask = None if self._mask is None else self._mask.clone()
        predicted = with_prediction(
            sample,
            boxes=self._boxes.clone(),
            labels=self._labels.clone(),
            scores=self._scores.clone(),
            mask=mask,
        )
        if mask is None and predicted.get("pred_bev_seg", None) is not None:
            del predicted.pred_bev_seg
        return predicted


def constant_predictions(training_dataset: Any, dataset: Any) -> Iterator[Det3DDataSample]:
    """The constant prediction, fitted on one dataset, for each sample of another."""
    predictor = ConstantPredictor.fit(training_dataset)
    for index in range(len(dataset)):
        yield predictor.predict(dataset[index]["data_samples"])


def baseline_predictions(
    name: Literal["constant", "ground-truth"], dataset: Any, *, training_dataset: Any = None
) -> Iterator[Det3DDataSample]:
    """Predicted data samples of a baseline, in the dataset's order.

    Args:
        name: "constant" or "ground-truth".
        dataset: the split to predict, built with the test pipeline.
        training_dataset: what the constant is fitted on, built with the test pipeline; not needed for the
            ground truth.

    Raises:
        ValueError: the name is unknown, or the constant has no training dataset.
    """
    if name == "ground-truth":
        return ground_truth_predictions(dataset)
    if name == "constant":
        if training_dataset is None:
            raise ValueError(
                "The constant baseline needs training_dataset: the training split with the test pipeline."
            )
        return constant_predictions(training_dataset, dataset)
    raise ValueError(f"Unknown baseline {name!r}; allowed: {', '.join(BASELINES)}.")

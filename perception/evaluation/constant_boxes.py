"""The best guess about boxes that never looks at an image: where each class usually is."""

import torch
from torch import Tensor


class ConstantBoxes:
    """Counts ground-truth boxes on a grid around the car and returns each class's most frequent cells.

    A cell's box has the mean position, size, heading (circular mean) and velocity of the boxes seen in it;
    its score is the share of samples in which the cell held a box of the class.

    Args:
        num_classes: number of classes.
        cell_size: side of a cell, metres; near the evaluator's matching distances (0.5 to 4 m).
        limit: boxes beyond ±limit along x or y are not counted, metres.
        max_per_class: boxes returned per class; ten classes of 50 are nuScenes' 500 per sample.

    Example:
        >>> boxes = ConstantBoxes(num_classes=1)
        >>> boxes.add(torch.tensor([[4.2, 8.4, -1.0, 4.5, 1.9, 1.6, 0.0, 1.0, 0.0]]), torch.tensor([0]))
        >>> predicted, labels, scores = boxes.best()
        >>> [round(value, 1) for value in predicted[0].tolist()], scores.tolist()
        ([4.2, 8.4, -1.0, 4.5, 1.9, 1.6, 0.0, 1.0, 0.0], [1.0])
    """

    def __init__(
        self, *, num_classes: int, cell_size: float = 2.0, limit: float = 52.0, max_per_class: int = 50
    ) -> None:
        self.num_classes = num_classes
        self.cell_size = cell_size
        self.limit = limit
        self.max_per_class = max_per_class
        self.num_samples = 0
        self._side = int(round(2 * limit / cell_size))
        shape = (num_classes, self._side**2)
        self._counts = torch.zeros(shape, dtype=torch.float64)
        self._velocity_counts = torch.zeros(shape, dtype=torch.float64)
        self._sums = torch.zeros((*shape, 8), dtype=torch.float64)  # x y z l w h sin cos
        self._velocity_sums = torch.zeros((*shape, 2), dtype=torch.float64)

    def add(self, boxes: Tensor, labels: Tensor) -> None:
        """Count one sample.

        Args:
            boxes: (n, 9), LiDAR frame, bottom-centre; NaN velocity where unknown.
            labels: (n,), long.
        """
        self.num_samples += 1
        boxes = boxes.detach().cpu().double()
        labels = labels.detach().cpu()
        is_near = (boxes[:, :2].abs() < self.limit).all(dim=1) & (labels >= 0)
        boxes, labels = boxes[is_near], labels[is_near]
        column, row = ((boxes[:, :2] + self.limit) / self.cell_size).long().clamp(0, self._side - 1).unbind(1)
        where = (labels, row * self._side + column)
        values = torch.cat([boxes[:, :6], boxes[:, 6:7].sin(), boxes[:, 6:7].cos()], dim=1)
        self._counts.index_put_(where, torch.ones(len(boxes), dtype=torch.float64), accumulate=True)
        self._sums.index_put_(where, values, accumulate=True)
        is_known = boxes[:, 7:9].isfinite().all(dim=1)
        known = (where[0][is_known], where[1][is_known])
        self._velocity_sums.index_put_(known, boxes[is_known, 7:9], accumulate=True)
        self._velocity_counts.index_put_(
            known, torch.ones(len(known[0]), dtype=torch.float64), accumulate=True
        )

    def best(self) -> tuple[Tensor, Tensor, Tensor]:
        """The constant prediction.

        Returns:
            boxes (m, 9), labels (m,) long and scores (m,) in (0, 1]; best first within each class.

        Raises:
            ValueError: no sample was counted.
        """
        if not self.num_samples:
            raise ValueError("ConstantBoxes has counted no sample; give it the training split first.")
        parts = [self._best_of(label) for label in range(self.num_classes)]
        boxes, scores = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
        labels = torch.cat([torch.full((len(part[1]),), index) for index, part in enumerate(parts)])
        return boxes.float(), labels.long(), scores.clamp(max=1.0).float()

    def _best_of(self, label: int) -> tuple[Tensor, Tensor]:
        counts = self._counts[label]
        order = torch.argsort(counts, descending=True, stable=True)[: self.max_per_class]
        order = order[counts[order] > 0]
        mean = self._sums[label, order] / counts[order, None]
        yaw = torch.atan2(mean[:, 6], mean[:, 7])
        velocity = self._velocity_sums[label, order] / self._velocity_counts[label, order, None].clamp(min=1)
        boxes = torch.cat([mean[:, :6], yaw[:, None], velocity], dim=1)
        return boxes, counts[order] / self.num_samples

"""The best guess about the map that never looks at an image: where each class usually is."""

import numpy as np

_NUM_CANDIDATES = 48
_NUM_ROUNDS = 3


class ConstantMap:
    """Per-pixel class frequencies and, per class, the frequency above which the class is predicted.

    A pixel goes to the class whose frequency is the largest multiple of its threshold, or to background if
    none reaches its threshold. Thresholds start at each class's own best IoU and are then improved in turn;
    both use the counts only, which give the training mIoU exactly.

    Args:
        num_classes: number of classes, background (0) included.

    Example:
        >>> constant = ConstantMap(num_classes=2)
        >>> for mask in ([[1, 0]], [[1, 0]], [[1, 1]]):
        ...     constant.add(np.array(mask))
        >>> constant.best().tolist(), constant.training_miou()
        ([[1, 0]], 0.75)
    """

    def __init__(self, *, num_classes: int) -> None:
        self.num_classes = num_classes
        self.num_samples = 0
        self._counts = np.zeros((num_classes, 0, 0), dtype=np.int64)

    def add(self, mask: np.ndarray) -> None:
        """Count one sample's map.

        Args:
            mask: (rows, columns), int, classes 0...num_classes − 1; other values do not count.

        Raises:
            ValueError: the shape differs from the samples before.
        """
        if not self.num_samples:
            self._counts = np.zeros((self.num_classes, *mask.shape), dtype=np.int64)
        elif mask.shape != self._counts.shape[1:]:
            raise ValueError(f"Map of shape {mask.shape} after maps of shape {self._counts.shape[1:]}.")
        self.num_samples += 1
        for label in range(self.num_classes):
            self._counts[label] += mask == label

    def best(self) -> np.ndarray:
        """The constant prediction, (rows, columns), int64.

        Raises:
            ValueError: no sample was counted.
        """
        return self._assign(self._best_thresholds())

    def training_miou(self) -> float:
        """Mean IoU of the constant prediction on the counted samples."""
        return self._miou(self.best())

    def _best_thresholds(self) -> np.ndarray:
        if not self.num_samples:
            raise ValueError(
                "ConstantMap has counted no sample with a map; give it the training split first."
            )
        frequencies = self._counts / self.num_samples
        thresholds = np.array(
            [1.0, *(self._own_best(frequencies[label]) for label in range(1, self.num_classes))]
        )
        best = self._miou(self._assign(thresholds))
        for _ in range(_NUM_ROUNDS):
            before = best
            for label in range(1, self.num_classes):
                positive = frequencies[label][frequencies[label] > 0]
                if not positive.size:
                    continue
                for candidate in np.unique(np.quantile(positive, np.linspace(0, 1, _NUM_CANDIDATES))):
                    trial = thresholds.copy()
                    trial[label] = candidate
                    score = self._miou(self._assign(trial))
                    if score > best:
                        thresholds, best = trial, score
            if best == before:
                break
        return thresholds

    @staticmethod
    def _own_best(frequency: np.ndarray) -> float:
        """The threshold with the best IoU of one class alone."""
        ordered = np.sort(frequency[frequency > 0])[::-1]
        if not ordered.size:
            return np.inf
        hits = np.cumsum(ordered)
        iou = hits / (np.arange(1, ordered.size + 1) + ordered.sum() - hits)
        return float(ordered[np.argmax(iou)])

    def _assign(self, thresholds: np.ndarray) -> np.ndarray:
        ratio = self._counts[1:] / self.num_samples / thresholds[1:, None, None]
        return np.where(ratio.max(axis=0) >= 1.0 - 1e-12, ratio.argmax(axis=0) + 1, 0)

    def _miou(self, prediction: np.ndarray) -> float:
        ious = []
        for label in range(1, self.num_classes):
            is_predicted = prediction == label
            hits, total = self._counts[label][is_predicted].sum(), self._counts[label].sum()
            union = is_predicted.sum() * self.num_samples + total - hits
            if union:
                ious.append(hits / union)
        return float(np.mean(ious)) if ious else 0.0

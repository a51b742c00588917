"""Average precision of boxes in images, fast or by BDD100K's own toolkit."""

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from perception.evaluation._official_bdd100k import official_box_scores
from perception.evaluation.gathered_metric import logger
from perception.evaluation.image_boxes import ImageBoxes, box_scores
from perception.evaluation.image_metric import ImageMetric
from perception.evaluation.scalabel_files import box_file, read_image_boxes
from perception.registry import METRICS
from perception.structures.driving_2d import BDD_BOX_CLASSES
from perception.utils import write_bytes_atomic

RESULT_FILE = "det.json"


@METRICS.register_module()
class BoxAPMetric(ImageMetric):
    """COCO's average precision of boxes, with BDD100K's classes, crowds and ignored categories.

    Keys: `AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl`, per class `AP/car`, …, as fractions of 1 (the toolkit
    prints per cent); `num_det_frames`; `comparable` (False on a subset). A score for which the ground truth has no box
    has no key. Boxes that are not finite are left out, with one warning, and counted in `num_dropped_boxes`.

    A data sample needs `frame_name` and `pred_instances` with `bboxes` (n, 4; x1, y1, x2, y2 in pixels of the image as
    it is on disk, far edges exclusive), `scores` and `labels`. A sample without `gt_instances` is not counted, for its
    frame has no box labels. The ground truth itself is read from the file, unrounded.

    *Source*: `evaluate_det` of scalabel 0.3.1, by which bdd100k 1.0.1 scores.

    Args:
        data_root: BDD100K's root.
        ann_file: Scalabel file of the ground truth, relative to the root.
        evaluator: "fast" (pycocotools' rules, compiled) or "official" (the toolkit); they give the same numbers.
        subset: only a part of the split is evaluated; the result is marked as not comparable.
        out_dir: where `det.json`, BDD100K's submission file, goes; not kept if None.
        format_only: only write that file, of all samples, for a split without labels; needs `out_dir`.

    Raises:
        ValueError: an unknown evaluator, or `format_only` lacks `out_dir`.

    Example:
        >>> BoxAPMetric(data_root="data/bdd100k").truth.as_posix()
        'data/bdd100k/labels/det_20/det_val.json'
    """

    label_field = "gt_instances"
    truth_words = "boxes to score against: set the evaluator's data_root and ann_file"

    def __init__(
        self,
        *,
        data_root: str,
        ann_file: str = "labels/det_20/det_val.json",
        evaluator: Literal["fast", "official"] = "fast",
        subset: bool = False,
        out_dir: str | None = None,
        format_only: bool = False,
    ) -> None:
        super().__init__(
            truth=Path(data_root) / ann_file,
            evaluator=evaluator,
            subset=subset,
            out_dir=out_dir,
            format_only=format_only,
        )
        self._truth: dict[str, ImageBoxes] | None = None
        self._has_warned = False

    def expected_tokens(self) -> Iterable[str] | None:
        """All frames of the ground truth."""
        return None if self.format_only else self._read_truth().keys()

    def process_sample(self, sample: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        """The sample's boxes (n, 4), scores (n,) and labels (n,), best first, and how many were left out.

        Raises:
            ValueError: the sample has no predicted boxes, or a box or label that cannot be.
        """
        name = self.token_of(sample)
        predicted = sample.get("pred_instances", None)
        if predicted is None:
            raise ValueError(
                f"Frame {name} has no pred_instances: the model predicts no boxes. Remove BoxAPMetric from the "
                "evaluators of a model without a detection head."
            )
        boxes, scores, labels = (_array(predicted[key]) for key in ("bboxes", "scores", "labels"))
        kept = np.flatnonzero(np.isfinite(boxes).all(axis=1) & np.isfinite(scores))
        num_dropped = len(boxes) - len(kept)
        if num_dropped and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "Frame %s: %d predicted boxes are not finite and are left out, as any later ones will be without "
                "a word; num_dropped_boxes counts them. The model has diverged: evaluate an earlier checkpoint.",
                name,
                num_dropped,
            )
        order = kept[np.argsort(-scores[kept], kind="stable")]
        boxes, scores, labels = boxes[order], scores[order], labels[order]
        _check(name, boxes, labels, len(BDD_BOX_CLASSES))
        return boxes, scores, labels.astype(np.uint8), num_dropped

    def compute_metrics(
        self, results: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, int]]
    ) -> dict[str, Any]:
        """Score the boxes; `results` maps frame names to what `process_sample` gave.

        Raises:
            ValueError: no sample has box labels, or an evaluated frame is not in the ground truth.
        """
        found = _as_boxes(results)
        if self.out_dir is not None:
            self._write(self.out_dir, found)
            logger.info("Boxes of %d frames: %s", len(found), self.out_dir / RESULT_FILE)
        if self.format_only:
            return {}
        if self.is_subset and not any(len(self._read_truth().get(name, ())) for name in found):
            logger.warning("The subset has no box in its ground truth: there is no AP.")
            return {"num_det_frames": len(found), "comparable": False}
        scored = self._score(found)
        num_dropped = sum(result[-1] for result in results.values())
        dropped = {"num_dropped_boxes": num_dropped} if num_dropped else {}
        return {
            **{name: value / 100 for name, value in scored.items()},
            **dropped,
            "num_det_frames": len(found),
            "comparable": not self.is_subset,
        }

    def score_samples(
        self, results: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, int]]
    ) -> dict[str, dict[str, float]]:
        """AP of each frame with a box in its ground truth, by the stem of its name: `SemSegMetric` has it so, too."""
        truth = {} if self.format_only else self._read_truth()
        scores = {}
        for name, boxes in _as_boxes(results).items():
            if len(truth.get(name, ())):
                of_frame = box_scores({name: truth[name]}, {name: boxes}, class_names=BDD_BOX_CLASSES)
                if "AP" in of_frame:
                    scores[Path(name).stem] = {"AP": of_frame["AP"] / 100}
        return scores

    def evaluate(self, size: int) -> dict[str, Any]:
        """As the base class; the ground truth is let go at the end."""
        try:
            return super().evaluate(size)
        finally:
            self._truth = None

    def _check_complete(self, merged: Mapping[str, Any], size: int) -> None:
        if not merged and size and not self.format_only:
            raise ValueError(
                f"BoxAPMetric: none of {size} evaluated samples has box labels (gt_instances). Load them in the test "
                "pipeline, or remove BoxAPMetric from the evaluators."
            )
        if not self.format_only:
            super()._check_complete(merged, size)

    def _read_truth(self) -> dict[str, ImageBoxes]:
        if self._truth is None:
            self._truth = read_image_boxes(self.truth)
        return self._truth

    def _score(self, found: Mapping[str, ImageBoxes]) -> dict[str, float]:
        truth = self._read_truth()
        if self.is_subset:
            logger.warning(
                "AP is of a subset (%d of %d frames) and not comparable with published values.",
                len(found),
                len(truth),
            )
            truth = {name: boxes for name, boxes in truth.items() if name in found}
        if not any(len(boxes) for boxes in found.values()):
            logger.warning("No box was predicted in %d frames: AP is 0.", len(found))
        if self.evaluator == "fast":
            return box_scores(truth, found, class_names=BDD_BOX_CLASSES)
        with tempfile.TemporaryDirectory() as scratch:
            self._write(Path(scratch), found)
            return official_box_scores(self.truth, Path(scratch) / RESULT_FILE, names=found.keys())

    def _write(self, folder: Path, found: Mapping[str, ImageBoxes]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes_atomic(folder / RESULT_FILE, box_file(found))


def _as_boxes(
    results: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray, int]],
) -> dict[str, ImageBoxes]:
    return {
        name: ImageBoxes(
            boxes=boxes.astype(np.float64), scores=scores.astype(np.float64), labels=labels.astype(np.int64)
        )
        for name, (boxes, scores, labels, _) in results.items()
    }


def _check(name: str | None, boxes: np.ndarray, labels: np.ndarray, num_classes: int) -> None:
    is_wrong = (boxes[:, 2:] < boxes[:, :2]).any(axis=1)
    if is_wrong.any():
        first = boxes[int(np.flatnonzero(is_wrong)[0])].tolist()
        raise ValueError(f"Frame {name}: the predicted box {first} ends before it begins (x1, y1, x2, y2).")
    if len(labels) and not (labels.min() >= 0 and labels.max() < num_classes):
        raise ValueError(
            f"Frame {name}: labels {labels.min()}…{labels.max()} found, allowed 0…{num_classes - 1}."
        )


def _array(value: torch.Tensor | np.ndarray) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)

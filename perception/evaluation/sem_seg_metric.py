"""Scores of semantic segmentation in images, fast or by BDD100K's own toolkit."""

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from perception.evaluation._official_bdd100k import official_seg_scores
from perception.evaluation.gathered_metric import logger
from perception.evaluation.image_metric import ImageMetric
from perception.evaluation.scalabel_files import encode_mask, list_masks, read_mask
from perception.evaluation.seg_scores import count_pixels, seg_scores
from perception.registry import METRICS
from perception.structures.driving_2d import BDD_SEG_CLASSES
from perception.utils import DataError, write_bytes_atomic

RESULT_FOLDER = "sem_seg"


@METRICS.register_module()
class SemSegMetric(ImageMetric):
    """IoU and accuracy of semantic segmentation at the size of the ground truth, by BDD100K's rules.

    Keys: `mIoU mAcc fIoU pAcc`, per class of the ground truth `IoU/road`, `Acc/road`, …, as fractions of 1 (the toolkit
    prints per cent); `num_seg_frames`; `seg_comparable` (False on a subset).

    A data sample needs `frame_name` and `pred_sem_seg` with `sem_seg` (1, H, W), values 0…18, others for no class. A
    sample without `gt_sem_seg` is not counted: its frame has no mask. The ground truth itself is read from the folder,
    where a frame's mask has the frame's name, ending in .png.

    *Source*: `bdd100k.eval.seg` 1.0.1, see `seg_scores`.

    Args:
        data_root: BDD100K's root.
        mask_dir: folder of the ground truth's masks, relative to the root.
        evaluator: "fast" (one confusion matrix) or "official" (the toolkit); both give the same numbers.
        subset: only a part of the split is evaluated; the result is marked as not comparable.
        out_dir: where the folder `sem_seg` of masks goes, BDD100K's submission format; not kept if None.
        format_only: only write these masks, of all samples, for a split without labels; needs `out_dir`.

    Raises:
        ValueError: an unknown evaluator, or `format_only` lacks `out_dir`.

    Example:
        >>> SemSegMetric(data_root="data/bdd100k").truth.as_posix()
        'data/bdd100k/labels/sem_seg/masks/val'
    """

    label_field = "gt_sem_seg"
    truth_words = "masks to score against: set the evaluator's data_root and mask_dir"

    def __init__(
        self,
        *,
        data_root: str,
        mask_dir: str = "labels/sem_seg/masks/val",
        evaluator: Literal["fast", "official"] = "fast",
        subset: bool = False,
        out_dir: str | None = None,
        format_only: bool = False,
    ) -> None:
        super().__init__(
            truth=Path(data_root) / mask_dir,
            evaluator=evaluator,
            subset=subset,
            out_dir=out_dir,
            format_only=format_only,
        )

    def token_of(self, sample: Mapping[str, Any]) -> str | None:
        """The frame's name without its ending, by which masks and images belong together."""
        name = super().token_of(sample)
        return name and Path(name).stem

    def expected_tokens(self) -> Iterable[str] | None:
        """Stems of all masks of the ground truth."""
        return None if self.format_only else list_masks(self.truth)

    def process_sample(self, sample: Mapping[str, Any]) -> tuple[np.ndarray | None, bytes | None]:
        """The sample's confusion matrix (C, C + 1), and its mask as a PNG where one is written.

        Raises:
            ValueError: the model predicts no mask, or one of another size than the ground truth.
            DataError: the ground truth's mask is missing or damaged.
        """
        stem = self.token_of(sample)
        predicted = sample.get("pred_sem_seg", None)
        if predicted is None:
            raise ValueError(
                f"Frame {stem} has no pred_sem_seg: the model predicts no mask. Remove SemSegMetric from the "
                "evaluators of a model without a segmentation head."
            )
        mask = _mask(predicted)
        counts = None
        if not self.format_only:
            path = self.truth / f"{stem}.png"
            try:
                counts = count_pixels(mask, read_mask(path, frame_name=stem), len(BDD_SEG_CLASSES))
            except DataError:
                raise
            except ValueError as error:
                raise DataError(str(error), sample_token=stem, path=path) from error
        is_kept = self.out_dir is not None or self.evaluator == "official"
        return counts, encode_mask(mask) if is_kept else None

    def compute_metrics(self, results: dict[str, tuple[np.ndarray | None, bytes | None]]) -> dict[str, Any]:
        """Score the masks; `results` maps stems to what `process_sample` gave."""
        if self.out_dir is not None:
            self._write(self.out_dir, results)
            logger.info("Masks of %d frames: %s", len(results), self.out_dir / RESULT_FOLDER)
        if self.format_only:
            return {}
        if self.is_subset and not results:
            logger.warning("The subset has no mask in its ground truth: there is no mIoU.")
            return {"num_seg_frames": 0, "seg_comparable": False}
        if not results:
            raise ValueError(
                "SemSegMetric: no evaluated sample has a mask (gt_sem_seg). Load it in the test pipeline, or "
                "remove SemSegMetric from the evaluators."
            )
        if self.is_subset:
            logger.warning(
                "mIoU is of a subset (%d frames) and not comparable with published values.", len(results)
            )
        return {
            **{name: value / 100 for name, value in self._score(results).items()},
            "num_seg_frames": len(results),
            "seg_comparable": not self.is_subset,
        }

    def score_samples(
        self, results: dict[str, tuple[np.ndarray | None, bytes | None]]
    ) -> dict[str, dict[str, float]]:
        """Each frame's mIoU, over the classes of its ground truth."""
        scores = {}
        for stem, (counts, _) in results.items():
            if counts is not None and counts.any():
                of_frame = seg_scores(counts, class_names=BDD_SEG_CLASSES)
                scores[stem] = {"mIoU": of_frame["mIoU"] / 100}
        return scores

    def _check_complete(self, merged: Mapping[str, Any], size: int) -> None:
        if merged and not self.format_only:
            super()._check_complete(merged, size)

    def _score(self, results: Mapping[str, tuple[np.ndarray | None, bytes | None]]) -> dict[str, float]:
        if self.evaluator == "fast":
            total = np.sum([counts for counts, _ in results.values() if counts is not None], axis=0)
            return seg_scores(total, class_names=BDD_SEG_CLASSES)
        with tempfile.TemporaryDirectory() as scratch:
            written = self._write(Path(scratch), results)
            truth = [self.truth / f"{stem}.png" for stem in results]
            return official_seg_scores(truth, written, class_names=BDD_SEG_CLASSES)

    def _write(
        self, folder: Path, results: Mapping[str, tuple[np.ndarray | None, bytes | None]]
    ) -> dict[str, Path]:
        folder = folder / RESULT_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        written = {}
        for stem, (_, png) in results.items():
            written[stem] = folder / f"{stem}.png"
            write_bytes_atomic(written[stem], png or b"")
        return written


def _mask(pixel_data: Mapping[str, Any]) -> np.ndarray:
    """(H, W) uint8 of a PixelData or its dict."""
    mask = pixel_data.get("sem_seg", None)
    array = mask.detach().cpu().numpy() if isinstance(mask, torch.Tensor) else np.asarray(mask)
    return array.reshape(array.shape[-2:]).astype(np.uint8)

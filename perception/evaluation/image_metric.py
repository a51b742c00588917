"""What the metrics of single images have in common: whose numbers, of what ground truth, and what is written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from perception.config import ConfigError
from perception.evaluation._bdd100k_toolkit import toolkit_module
from perception.evaluation.gathered_metric import GatheredMetric
from perception.utils import DataError

EVALUATORS = ("fast", "official")


class ImageMetric(GatheredMetric):
    """Scores what is predicted for images, of which not all have this metric's kind of label.

    A subclass names the field of a data sample that only labelled images have, and what its ground truth is.

    Args:
        truth: file or folder of the ground truth.
        evaluator: "fast" (our own code) or "official" (BDD100K's toolkit); they give the same numbers.
        subset: only a part of the split is evaluated; the result is marked as not comparable.
        out_dir: where predictions go in BDD100K's submission format; not kept if None.
        format_only: only write predictions, of all samples, for a split without labels; needs `out_dir`.

    Raises:
        ValueError: an unknown evaluator, or `format_only` lacks `out_dir`.
    """

    token_key = "frame_name"
    label_field: str
    truth_words: str

    def __init__(
        self,
        *,
        truth: Path,
        evaluator: Literal["fast", "official"],
        subset: bool,
        out_dir: str | None,
        format_only: bool,
    ) -> None:
        super().__init__(subset=subset)
        if evaluator not in EVALUATORS:
            raise ValueError(f"evaluator is {evaluator!r}; allowed: {', '.join(EVALUATORS)}")
        if format_only and out_dir is None:
            raise ValueError(
                "format_only=True writes predictions: set out_dir to the folder they should go to."
            )
        self.truth = truth
        self.evaluator = evaluator
        self.out_dir = None if out_dir is None else Path(out_dir)
        self.format_only = format_only

    def check_dataset(self, metainfo: Mapping[str, Any]) -> None:
        """Look for the ground truth, and for the toolkit if it is to score, before a sample is predicted.

        Raises:
            DataError: there is no ground truth.
            ConfigError: the official evaluator is asked for, and its toolkit is not installed.
        """
        if not self.format_only and not self.truth.exists():
            raise DataError(
                f"there is no ground truth of {self.truth_words}; or set the evaluator's format_only=True and out_dir "
                "to write the predictions only",
                path=self.truth,
            )
        if self.evaluator != "official":
            return
        try:
            toolkit_module("bdd100k.eval.run")
        except ImportError as error:
            raise ConfigError(
                f'{error}, or set the evaluator\'s evaluator="fast", which gives the same numbers'
            ) from error

    def is_counted(self, sample: Mapping[str, Any]) -> bool:
        """Whether the image has labels; without labels at all, whether predictions are only written."""
        return self.format_only or sample.get(self.label_field, None) is not None

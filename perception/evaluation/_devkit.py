"""nuscenes-devkit, quiet and safe on the inputs where it crashes. The numbers are the devkit's own."""

import contextlib
import io
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nuscenes import NuScenes
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.common.loaders import (
    add_center_dist,
    filter_eval_boxes,
    load_gt_of_sample_tokens,
    load_prediction_of_sample_tokens,
)
from nuscenes.eval.detection.data_classes import DetectionBox, DetectionConfig
from nuscenes.eval.detection.evaluate import DetectionEval
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.utils.splits import get_scenes_of_split

from perception.evaluation.sample_precision import sample_precision
from perception.utils import DataError, read_json

_TABLES = (
    "map attribute calibrated_sensor category ego_pose instance log sample sample_annotation sample_data scene sensor "
    "visibility"
).split()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back the devkit's prints and progress bars; exceptions pass."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def check_tables(data_root: str | Path, version: str) -> None:
    """Look for the files without which the devkit does not load the tables; quick, nothing large is read.

    Raises:
        DataError: names the first file that is missing.
    """
    folder = Path(data_root) / version
    wanted = [folder / f"{table}.json" for table in _TABLES]
    if wanted[0].is_file():
        wanted += [Path(data_root) / record["filename"] for record in read_json(wanted[0])]
    for path in wanted:
        if not path.is_file():
            raise DataError(
                "nuscenes-devkit needs this file for the evaluation; unpack nuScenes' metadata archive, which holds "
                "tables and maps/*.png, into the root again",
                path=path,
            )


def open_tables(data_root: str | Path, version: str) -> NuScenes:
    """The nuScenes tables.

    Raises:
        DataError: the root holds no such version, or its tables are damaged.
    """
    folder = Path(data_root) / version
    if not folder.is_dir():
        found = sorted(path.name for path in Path(data_root).glob("v*") if path.is_dir())
        raise DataError(
            f"no nuScenes tables of version {version!r} (found: {', '.join(found) or 'none'}); set data_root "
            "and version to a nuScenes root",
            path=folder,
        )
    try:
        with quiet():
            return NuScenes(version=version, dataroot=str(data_root), verbose=False)
    except (KeyError, IndexError, AssertionError, ValueError, OSError) as error:
        raise DataError(
            f"nuscenes-devkit cannot load the tables ({type(error).__name__}: {error}); run "
            "`perception data verify` on this root",
            path=folder,
        ) from error


def split_tokens(tables: NuScenes, eval_set: str) -> list[str]:
    """Tokens of a split's samples, in the order of the tables.

    Raises:
        ValueError: the split is unknown.
        DataError: no scene of the split is in the tables.
    """
    try:
        scenes = set(get_scenes_of_split(eval_set, tables))
    except ValueError as error:
        raise ValueError(
            f"eval_set {eval_set!r} is neither one of nuScenes' splits (mini_train, mini_val, train, val, "
            "test, ...) nor in the root's splits.json."
        ) from error
    wanted = {scene["token"] for scene in tables.scene if scene["name"] in scenes}
    tokens = [sample["token"] for sample in tables.sample if sample["scene_token"] in wanted]
    if not tokens:
        raise DataError(
            f"no sample of split {eval_set!r} in version {tables.version!r}; check eval_set and version",
            path=Path(tables.dataroot) / tables.version,
        )
    return tokens


class _PartEval(DetectionEval):
    """DetectionEval on chosen samples, also where no box is left; `evaluate` is inherited unchanged."""

    def __init__(
        self, tables: NuScenes, config: DetectionConfig, result_path: str, sample_tokens: Sequence[str]
    ) -> None:
        self.nusc = tables
        self.cfg = config
        self.verbose = False
        predictions, self.meta = load_prediction_of_sample_tokens(
            result_path, config.max_boxes_per_sample, DetectionBox, sample_tokens=list(sample_tokens)
        )
        truth = load_gt_of_sample_tokens(tables, list(sample_tokens), DetectionBox)
        self.pred_boxes = self._filter(predictions)
        self.gt_boxes = self._filter(truth)
        self.sample_tokens = self.gt_boxes.sample_tokens

    def _filter(self, boxes: EvalBoxes) -> EvalBoxes:
        if not boxes.all:
            return boxes  # the devkit's filter stops on "Invalid box type: None"
        return filter_eval_boxes(self.nusc, add_center_dist(self.nusc, boxes), self.cfg.class_range)


def _has_truth(tables: NuScenes, sample_tokens: Sequence[str]) -> bool:
    """Whether a sample has an annotation of the ten classes."""
    return any(
        category_to_detection_name(tables.get("sample_annotation", annotation)["category_name"]) is not None
        for token in sample_tokens
        for annotation in tables.get("sample", token)["anns"]
    )


def evaluate_detections(
    *,
    tables: NuScenes,
    result_path: str | Path,
    eval_set: str,
    sample_tokens: Sequence[str],
    whole_split: bool,
    has_predictions: bool,
    keeps_sample_scores: bool = False,
) -> tuple[dict[str, Any], dict[str, Any], dict[str, dict[str, float]]]:
    """Run the official detection evaluation (configuration `detection_cvpr_2019`).

    The whole split goes through `DetectionEval` itself. A part of it, an all-empty prediction and a split
    without a box of the ten classes go through the same loading, filtering and accumulating functions for the
    named samples.

    Args:
        tables: the nuScenes tables.
        result_path: result file in nuScenes' form; holds every token of `sample_tokens`.
        eval_set: name of the split.
        sample_tokens: the samples to evaluate.
        whole_split: whether these are all the split's samples.
        has_predictions: whether the result file holds any box.
        keeps_sample_scores: score each sample alone, too.

    Returns:
        The devkit's `metrics_summary.json` and `metrics_details.json` as dicts (may hold NaN), and sample token →
        {"mAP": `sample_precision`} of the samples with a box that counts, empty if not asked for.
    """
    config = config_factory("detection_cvpr_2019")
    with quiet(), tempfile.TemporaryDirectory() as scratch:
        evaluation: DetectionEval
        if whole_split and has_predictions and _has_truth(tables, sample_tokens):
            evaluation = DetectionEval(tables, config, str(result_path), eval_set, scratch, verbose=False)
        else:
            evaluation = _PartEval(tables, config, str(result_path), sample_tokens)
        metrics, details = evaluation.evaluate()
    samples = _score_samples(evaluation, config) if keeps_sample_scores else {}
    return metrics.serialize(), details.serialize(), samples


def _score_samples(evaluation: DetectionEval, config: DetectionConfig) -> dict[str, dict[str, float]]:
    scores = {}
    for token in evaluation.gt_boxes.sample_tokens:
        true_centres, true_labels, _ = _arrays(evaluation.gt_boxes[token])
        centres, labels, confidences = _arrays(evaluation.pred_boxes[token])
        precision = sample_precision(
            centres, confidences, labels, true_centres, true_labels, distances=config.dist_ths
        )
        if precision is not None:
            scores[token] = {"mAP": precision}
    return scores


def _arrays(boxes: Sequence[DetectionBox]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n, 2) centres, global frame, metres, (n,) class names and (n,) scores."""
    centres = np.array([box.translation[:2] for box in boxes], dtype=np.float64).reshape(-1, 2)
    names = np.array([box.detection_name for box in boxes], dtype=np.str_)
    return centres, names, np.array([box.detection_score for box in boxes], dtype=np.float64)

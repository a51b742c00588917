"""NDS, mAP and the five true-positive errors, by nuscenes-devkit's own DetectionEval."""

import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nuscenes import NuScenes

from perception.config import ConfigError
from perception.evaluation._devkit import check_tables, evaluate_detections, open_tables, split_tokens
from perception.evaluation._results import SampleBoxes, boxes2entries, lidar2global, select_boxes
from perception.evaluation.gathered_metric import GatheredMetric, logger
from perception.registry import METRICS
from perception.structures import CLASS_NAMES
from perception.utils import DataError, write_bytes_atomic, write_json_atomic

TP_ERRORS = {"trans_err": "ATE", "scale_err": "ASE", "orient_err": "AOE", "vel_err": "AVE", "attr_err": "AAE"}
"""The devkit's names of the true-positive errors → ours (metres, 1 − IoU, rad, m/s, 1 − accuracy)."""

_DEFAULT_SETS = {"v1.0-mini": "mini_val", "v1.0-trainval": "val", "v1.0-test": "test"}
_META = {"use_camera": True, "use_lidar": False, "use_radar": False, "use_map": False, "use_external": False}


@METRICS.register_module()
class NuScenesDetectionMetric(GatheredMetric):
    """Official nuScenes detection scores of boxes predicted in the LiDAR frame.

    Keys: `NDS mAP mATE mASE mAOE mAVE mAAE`, per class `AP/car`, `ATE/car`, ... and `comparable` (False on a
    subset). An error that nuScenes leaves undefined (`AOE/traffic_cone`, `AVE/barrier`, ...) has no key.
    All-empty predictions score NDS 0, mAP 0 and errors 1. Boxes that are not finite are left out, with one warning, and
    counted in `num_dropped_boxes` (a key only if there are any): a model that diverges scores badly, but it scores.

    A data sample needs `sample_token`, `ego2global`, `lidar2ego` and `pred_instances_3d` with `bboxes_3d`
    (LiDARInstance3DBoxes), `scores_3d`, `labels_3d`, and optionally `attributes` (list of names); attributes
    otherwise follow from class and speed.

    *Source*: nuScenes detection task, configuration detection_cvpr_2019; attribute rule as in mmdet3d's
    NuScenesMetric.

    Args:
        data_root: nuScenes root.
        version: "v1.0-mini", "v1.0-trainval" or "v1.0-test".
        eval_set: split to score; by default the version's validation (or test) split.
        subset: only a part of the split is evaluated; the result is marked as not comparable.
        out_dir: where `results_nusc.json`, `metrics_summary.json` and `metrics_details.json` go; not kept if
            None.
        format_only: only write the result file, for a split without annotations; needs `out_dir`.
        class_names: names of the labels; by default the dataset's, else BEVFormer's order.

    Raises:
        ValueError: `eval_set` cannot be derived, or `format_only` lacks `out_dir`.

    Example:
        >>> metric = NuScenesDetectionMetric(data_root="data/nuscenes", version="v1.0-mini")
        >>> metric.eval_set
        'mini_val'
    """

    classes_key = "classes"  # of the dataset's metainfo

    def __init__(
        self,
        *,
        data_root: str,
        version: str,
        eval_set: str | None = None,
        subset: bool = False,
        out_dir: str | None = None,
        format_only: bool = False,
        class_names: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__(subset=subset)
        if eval_set is None and version not in _DEFAULT_SETS:
            raise ValueError(
                f"version {version!r} has no default split; set eval_set. Known: {', '.join(_DEFAULT_SETS)}."
            )
        if format_only and out_dir is None:
            raise ValueError(
                "format_only=True writes a result file: set out_dir to the folder it should go to."
            )
        self.data_root = str(data_root)
        self.version = version
        self.eval_set = eval_set or _DEFAULT_SETS[version]
        self.out_dir = None if out_dir is None else Path(out_dir)
        self.format_only = format_only
        self._class_names = class_names
        self._has_warned = False
        self._of_samples: dict[str, dict[str, float]] = {}

    @cached_property
    def tables(self) -> NuScenes:
        """The nuScenes tables, loaded at the first use of an evaluation and let go at its end."""
        return open_tables(self.data_root, self.version)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the labels."""
        if self._class_names is not None:
            return tuple(self._class_names)
        return tuple((self.dataset_meta or {}).get(self.classes_key, CLASS_NAMES))

    def check_dataset(self, metainfo: Mapping[str, Any]) -> None:
        """Compare version and split with those of the dataset's index; one of another origin may name neither.

        The tables would tell as much, but only after the last sample, and loading the full set's takes a minute.

        Raises:
            ConfigError: another version or split.
            DataError: a table or a map's mask is missing, or there is no annotation to score against.
        """
        for key, own in (("version", self.version), ("split", self.eval_set)):
            found = metainfo.get(key)
            if found is not None and found != own:
                option = "version" if key == "version" else "eval_set"
                raise ConfigError(
                    f"the evaluated index is of {key} {found!r}, NuScenesDetectionMetric is set to {own!r}. Set the "
                    f"evaluator's {option} to {found!r}, or the dataset's ann_file to another index."
                )
        check_tables(self.data_root, self.version)
        self._check_annotations()

    def expected_tokens(self) -> list[str]:
        """All samples of the split."""
        return split_tokens(self.tables, self.eval_set)

    def process_sample(self, sample: Mapping[str, Any]) -> SampleBoxes:
        """The sample's checked boxes.

        Raises:
            ValueError: the sample has no predicted boxes or lacks poses, or a box has no size.
        """
        predicted = sample.get("pred_instances_3d", None)
        if predicted is None:
            raise ValueError(
                f"Sample {sample.get('sample_token', None)} has no pred_instances_3d: the model predicts no "
                "boxes. Remove NuScenesDetectionMetric from the evaluators of a model without a detection "
                "head."
            )
        found = select_boxes(
            sample_token=sample.get("sample_token", None),
            boxes=_array(predicted["bboxes_3d"].tensor),
            scores=_array(predicted["scores_3d"]),
            labels=_array(predicted["labels_3d"]),
            pose=lidar2global(sample),
            num_classes=len(self.class_names),
            attributes=predicted.get("attributes", None),
        )
        if found.num_dropped and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "Sample %s: %d predicted boxes are not finite and are left out, as any later ones will be without a "
                "word; num_dropped_boxes counts them. The model has diverged: evaluate an earlier checkpoint.",
                sample.get("sample_token", None),
                found.num_dropped,
            )
        return found

    def compute_metrics(self, results: dict[str, SampleBoxes]) -> dict[str, Any]:
        """Write the result file and score it; `results` maps sample tokens to boxes."""
        with tempfile.TemporaryDirectory() as scratch:
            folder = self.out_dir or Path(scratch)
            folder.mkdir(parents=True, exist_ok=True)
            result_path = folder / "results_nusc.json"
            write_bytes_atomic(result_path, self._result_file(results))
            if self.format_only:
                logger.info("Result file of %d samples: %s", len(results), result_path)
                return {}
            return self._score(results, result_path)

    def score_samples(self, results: dict[str, SampleBoxes]) -> dict[str, dict[str, float]]:
        """Each sample's mAP, see `sample_precision`."""
        return {} if self.format_only else self._of_samples

    def evaluate(self, size: int) -> dict[str, Any]:
        """As the base class; the full set's tables are gigabytes, which the training goes on without."""
        try:
            return super().evaluate(size)
        finally:
            self.__dict__.pop("tables", None)

    def _check_annotations(self) -> None:
        path = Path(self.data_root) / self.version / "sample_annotation.json"
        if self.format_only:
            return
        with path.open("rb") as file:
            is_empty = b"".join(file.read(64).split()) == b"[]"
        if is_empty:
            raise DataError(
                "the table is empty, so there is nothing to score against. Only write the result file: set the "
                "evaluator's format_only=True and its out_dir, and leave out BEVSegMetric where there is no map",
                path=path,
            )

    def _result_file(self, results: Mapping[str, SampleBoxes]) -> Iterator[bytes]:
        """The file in nuScenes' form, sample by sample."""
        yield f'{{"meta": {json.dumps(_META)},\n"results": {{'.encode()
        for number, (token, found) in enumerate(results.items()):
            entries = boxes2entries(token, found, class_names=self.class_names)
            text = f"{json.dumps(token)}: {json.dumps(entries, allow_nan=False)}"
            yield ((",\n" if number else "\n") + text).encode()
        yield b"\n}}\n"

    def _score(self, results: dict[str, SampleBoxes], result_path: Path) -> dict[str, Any]:
        self._check_annotations()
        whole_split = not self.is_subset
        if self.is_subset:
            total = self.expected_tokens()
            unknown = sorted(set(results) - set(total))
            if unknown or not results:
                found = f"sample {unknown[0]} is not in it" if unknown else "no sample was evaluated"
                raise ValueError(f"Subset of split {self.eval_set!r}: {found}.")
            logger.warning(
                "Detection scores are of a subset (%d of %d samples of %s) and not comparable with "
                "published ones.",
                len(results),
                len(total),
                self.eval_set,
            )
        has_boxes = any(len(found) for found in results.values())
        if not has_boxes:
            logger.warning("No box was predicted in %d samples: NDS and mAP are 0.", len(results))
        summary, details, self._of_samples = evaluate_detections(
            tables=self.tables,
            result_path=result_path,
            eval_set=self.eval_set,
            sample_tokens=list(results),
            whole_split=whole_split,
            has_predictions=has_boxes,
            keeps_sample_scores=self.keeps_sample_scores,
        )
        if self.out_dir is not None:
            write_json_atomic(self.out_dir / "metrics_summary.json", _without_nan(summary))
            write_json_atomic(self.out_dir / "metrics_details.json", _without_nan(details), indent=None)
        num_dropped = sum(found.num_dropped for found in results.values())
        dropped = {"num_dropped_boxes": num_dropped} if num_dropped else {}
        return {**_flatten(summary), **dropped, "comparable": whole_split}


def _flatten(summary: Mapping[str, Any]) -> dict[str, float]:
    """The devkit's summary under our keys; undefined (NaN) values are left out."""
    metrics = {"NDS": summary["nd_score"], "mAP": summary["mean_ap"]}
    metrics |= {f"m{ours}": summary["tp_errors"][theirs] for theirs, ours in TP_ERRORS.items()}
    for name, average_precision in summary["mean_dist_aps"].items():
        metrics[f"AP/{name}"] = average_precision
        for theirs, ours in TP_ERRORS.items():
            metrics[f"{ours}/{name}"] = summary["label_tp_errors"][name][theirs]
    return {key: float(value) for key, value in metrics.items() if not math.isnan(value)}


def _without_nan(value: Any) -> Any:
    """The same structure in strict JSON: NaN becomes null, keys become strings."""
    if isinstance(value, Mapping):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return None if math.isnan(value) else float(value)
    return value


def _array(value: torch.Tensor | np.ndarray) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)

"""Scores: nuScenes detection (NDS, mAP, errors), BEV map IoU, their baselines, and multi-task scores."""

from perception.evaluation.baselines import (
    BASELINES,
    ConstantPredictor,
    baseline_predictions,
    constant_predictions,
)
from perception.evaluation.bev_seg_metric import BEVSegMetric, count_matches
from perception.evaluation.constant_boxes import ConstantBoxes
from perception.evaluation.constant_map import ConstantMap
from perception.evaluation.gathered_metric import GatheredMetric
from perception.evaluation.ground_truth_baseline import ground_truth_predictions
from perception.evaluation.multi_task_scores import LOWER_IS_BETTER, acc_mtl, delta_m, delta_mtl
from perception.evaluation.nuscenes_metric import NuScenesDetectionMetric

__all__ = [
    "BASELINES",
    "BEVSegMetric",
    "ConstantBoxes",
    "ConstantMap",
    "ConstantPredictor",
    "GatheredMetric",
    "LOWER_IS_BETTER",
    "NuScenesDetectionMetric",
    "acc_mtl",
    "baseline_predictions",
    "constant_predictions",
    "count_matches",
    "delta_m",
    "delta_mtl",
    "ground_truth_predictions",
]

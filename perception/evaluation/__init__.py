"""Scores: nuScenes detection, BEV map IoU, boxes and segmentation in images, baselines, and multi-task scores."""

from perception.evaluation.baselines import (
    BASELINES,
    ConstantPredictor,
    baseline_predictions,
    constant_predictions,
)
from perception.evaluation.bev_seg_metric import BEVSegMetric, count_matches
from perception.evaluation.box_ap_metric import BoxAPMetric
from perception.evaluation.constant_boxes import ConstantBoxes
from perception.evaluation.constant_map import ConstantMap
from perception.evaluation.gathered_metric import GatheredMetric
from perception.evaluation.ground_truth_baseline import ground_truth_predictions
from perception.evaluation.image_boxes import ImageBoxes, box_scores
from perception.evaluation.multi_task_scores import LOWER_IS_BETTER, acc_mtl, delta_m, delta_mtl
from perception.evaluation.nuscenes_metric import NuScenesDetectionMetric
from perception.evaluation.scalabel_files import (
    box_file,
    encode_mask,
    list_masks,
    read_image_boxes,
    read_mask,
    read_rle_masks,
)
from perception.evaluation.seg_scores import count_pixels, seg_scores
from perception.evaluation.sem_seg_metric import SemSegMetric

__all__ = [
    "BASELINES",
    "BEVSegMetric",
    "BoxAPMetric",
    "ConstantBoxes",
    "ConstantMap",
    "ConstantPredictor",
    "GatheredMetric",
    "ImageBoxes",
    "LOWER_IS_BETTER",
    "NuScenesDetectionMetric",
    "SemSegMetric",
    "acc_mtl",
    "baseline_predictions",
    "box_file",
    "box_scores",
    "constant_predictions",
    "count_matches",
    "count_pixels",
    "delta_m",
    "delta_mtl",
    "encode_mask",
    "ground_truth_predictions",
    "list_masks",
    "read_image_boxes",
    "read_mask",
    "read_rle_masks",
    "seg_scores",
]

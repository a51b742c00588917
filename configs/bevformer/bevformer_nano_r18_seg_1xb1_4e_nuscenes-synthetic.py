"""BEVFormer nano, map only: the single-task baseline of segmentation on the synthetic world.

Source: ours; as bevformer_nano without the box head.
Hardware: 2 CPU cores, no GPU.
Expected time: 2,128 s measured on a share of one core, other work beside it; not run on an idle machine.
Expected NDS / mIoU: - / 0.283, held-out scenes; the config as it is.
Command: perception train bevformer_nano_seg --work-dir work_dirs/nano_seg
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.nuscenes_synthetic import *
    from .._base_.models.bevformer_nano import *
    from .._base_.runtime import *
    from .._base_.schedules.adamw_nano import *

model.update(box_head=None, center_heatmap=None, perspective_head=None)
val_evaluator = val_evaluator[1:]  # the map's metric
test_evaluator = val_evaluator

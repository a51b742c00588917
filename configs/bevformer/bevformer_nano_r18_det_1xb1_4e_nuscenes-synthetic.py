"""BEVFormer nano, boxes only: the single-task baseline of detection on the synthetic world.

Source: ours; as bevformer_nano without the segmentation head.
Hardware: 2 CPU cores, no GPU.
Expected time: 1,821 s measured on a share of one core, other work beside it; not run on an idle machine.
Expected NDS / mIoU: 0.181 / - (mAP 0.092), held-out scenes; the config as it is.
Command: perception train bevformer_nano_det --work-dir work_dirs/nano_det
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.nuscenes_synthetic import *
    from .._base_.models.bevformer_nano import *
    from .._base_.runtime import *
    from .._base_.schedules.adamw_nano import *

model.update(seg_head=None)
train_dataloader["dataset"]["pipeline"].pop(-2)  # LoadBEVMap
val_dataloader["dataset"]["pipeline"].pop(-2)
test_dataloader = val_dataloader
val_evaluator = val_evaluator[:1]  # the boxes' metric
test_evaluator = val_evaluator

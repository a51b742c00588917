"""FCOS nano, boxes only: the single-task baseline of detection on the synthetic world, and a teacher.

Source: ours; `fcos_rt`'s structure and recipe at a size that two CPU cores train from scratch.
Hardware: 2 CPU cores, no GPU.
Expected time: 205 s of training with one thread on a busy machine.
Expected AP / mIoU: 0.039 / –, one seed, measured.
Command: perception train fcos_nano_det --work-dir work_dirs/fcos_nano_det
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.bdd100k_synthetic import *
    from .._base_.models.fcos_nano import *
    from .._base_.runtime import *
    from .._base_.schedules.sgd_nano import *

model.update(seg_head=None)
train_dataloader.dataset.update(labels="det")
val_dataloader.dataset.update(labels="det")
test_dataloader = val_dataloader
val_evaluator = val_evaluator[:1]  # the boxes' metric
test_evaluator = val_evaluator

"""FCOS nano, masks only: the single-task baseline of segmentation on the synthetic world, and a teacher.

Source: ours; `fcos_rt`'s structure and recipe at a size that two CPU cores train from scratch.
Hardware: 2 CPU cores, no GPU.
Expected time: 163 s of training with one thread on a busy machine.
Expected AP / mIoU: – / 0.248, one seed, measured.
Command: perception train fcos_nano_seg --work-dir work_dirs/fcos_nano_seg
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.bdd100k_synthetic import *
    from .._base_.models.fcos_nano import *
    from .._base_.runtime import *
    from .._base_.schedules.sgd_nano import *

model.update(box_head=None)
train_dataloader.dataset.update(labels="seg")
val_dataloader.dataset.update(labels="seg")
test_dataloader = val_dataloader
val_evaluator = val_evaluator[1:]  # the masks' metric
test_evaluator = val_evaluator

"""FCOS nano, boxes and masks together, on the synthetic world.

Source: ours; `fcos_rt`'s structure and recipe at a size that two CPU cores train from scratch.
Hardware: 2 CPU cores, no GPU.
Expected time: 377 s of training with one thread on a busy machine.
Expected AP / mIoU: 0.055 / 0.298, one seed, measured.
Command: perception train fcos_nano --work-dir work_dirs/fcos_nano
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.bdd100k_synthetic import *
    from .._base_.models.fcos_nano import *
    from .._base_.runtime import *
    from .._base_.schedules.sgd_nano import *

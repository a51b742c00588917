"""FCOS nano with pseudo labels beside the ground truth, on the synthetic world.

Source: ours; `fcos_nano` with the weights of MCLGS's Eq. 9.
Hardware: 2 CPU cores, no GPU.
Expected time: not run.
Expected AP / mIoU: not run.
Command: perception train fcos_nano_pseudo --work-dir work_dirs/fcos_nano_pseudo
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.bdd100k_synthetic import *
    from .._base_.models.fcos_nano import *
    from .._base_.runtime import *
    from .._base_.schedules.sgd_nano import *

model.update(label_weights=dict(gt=0.8, pseudo=0.2), task_weights=dict(det=1.7, seg=0.3))
train_dataloader.dataset.update(pseudo_labels="data/bdd100k-synthetic-pseudo")

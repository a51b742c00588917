"""FCOS-RT, boxes only: the paper's single-task baseline of detection, and a teacher. Its pyramid begins at P3.

Source: MCLGS (Igarashi and Yoneji 2022), section 4.1.2 and the row "STL baseline" of Table 4.
Hardware: 1 GPU (the paper does not say which).
Expected time: not run.
Expected AP / mIoU: not run (the paper: 0.2537 / -).
Command: perception train fcos_rt_det --set model.backbone_weights=resnet50.safetensors
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.bdd100k import *
    from .._base_.models.fcos_rt import *
    from .._base_.runtime import *
    from .._base_.schedules.sgd_30e import *

model.update(seg_head=None)
model.img_neck.update(start_level=1, num_outs=3)
model.box_head.update(levels=(0, 1, 2))
train_dataloader.dataset.update(labels="det")
val_dataloader.dataset.update(labels="det")
test_dataloader = val_dataloader
val_evaluator = val_evaluator[:1]  # the boxes' metric
test_evaluator = val_evaluator

"""FCOS-RT's backbone and pyramid with the segmentation head only: the paper's single-task baseline, and a teacher.

Source: MCLGS (Igarashi and Yoneji 2022), section 4.1.2 and the row "STL baseline" of Table 4.
Hardware: 1 GPU (the paper does not say which).
Expected time: not run.
Expected AP / mIoU: not run (the paper: - / 0.4966).
Command: perception train fcos_rt_seg --set model.backbone_weights=resnet50.safetensors
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.bdd100k import *
    from .._base_.models.fcos_rt import *
    from .._base_.runtime import *
    from .._base_.schedules.sgd_30e import *

model.update(box_head=None)
train_dataloader.dataset.update(labels="seg")
val_dataloader.dataset.update(labels="seg")
test_dataloader = val_dataloader
val_evaluator = val_evaluator[1:]  # the masks' metric
test_evaluator = val_evaluator

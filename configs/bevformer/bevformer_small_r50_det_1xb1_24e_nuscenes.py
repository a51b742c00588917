"""BEVFormer-Small, boxes only: the single-task baseline of detection.

Source: wPCGrad (Bohn et al. 2024), the row "Det. only" of Table 1. There the other task's loss is 0; here its head is
left out, which trains the same: 38,666,757 parameters.
Hardware: 1 GPU.
Expected time: not run.
Expected NDS / mIoU: not run (the paper: 0.323 / -).
Command: perception train bevformer_small_det --set model.backbone_weights=resnet50.safetensors
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.nuscenes_512x288 import *
    from .._base_.models.bevformer_small import *
    from .._base_.runtime import *
    from .._base_.schedules.adamw_24e_small import *

model.update(seg_head=None)
train_dataloader.dataset.pipeline.pop(-2)  # LoadBEVMap
val_dataloader.dataset.pipeline.pop(-2)
test_dataloader = val_dataloader
val_evaluator = val_evaluator[:1]  # the boxes' metric
test_evaluator = val_evaluator

"""BEVFormer-Small, map only: the single-task baseline of segmentation.

Source: wPCGrad (Bohn et al. 2024), the row "Seg. only" of Table 1. There the other task's loss is 0; here its head is
left out, which trains the same.
Hardware: 1 GPU.
Expected time: not run.
Expected NDS / mIoU: not run (the paper: - / 0.385).
Command: perception train bevformer_small_seg --set model.backbone_weights=resnet50.safetensors
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.nuscenes_512x288 import *
    from .._base_.models.bevformer_small import *
    from .._base_.runtime import *
    from .._base_.schedules.adamw_24e_small import *

model.update(box_head=None)
val_evaluator = val_evaluator[1:]  # the map's metric
test_evaluator = val_evaluator

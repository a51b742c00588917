"""FCOS-RT with the segmentation head on P3-P5, at stride 8: the other reading of the paper.

Source: MCLGS (Igarashi and Yoneji 2022), section 4.1.2, which does not say which levels feed the segmentation head.
Hardware: 1 GPU (the paper does not say which).
Expected time: not run.
Expected AP / mIoU: not run.
Command: perception train fcos_rt_p3 --set model.backbone_weights=resnet50.safetensors
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.bdd100k import *
    from .._base_.models.fcos_rt_p3 import *
    from .._base_.runtime import *
    from .._base_.schedules.sgd_30e import *

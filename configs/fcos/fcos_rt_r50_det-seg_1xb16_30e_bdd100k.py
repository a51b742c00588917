"""FCOS-RT with a segmentation head, boxes and masks together, on BDD100K: ground truth alone, losses summed.

Source: MCLGS (Igarashi and Yoneji 2022), section 4.1.2, without its pseudo labels.
Hardware: 1 GPU (the paper does not say which).
Expected time: not run.
Expected AP / mIoU: not run.
Command: perception train fcos_rt --set model.backbone_weights=resnet50.safetensors
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.bdd100k import *
    from .._base_.models.fcos_rt import *
    from .._base_.runtime import *
    from .._base_.schedules.sgd_30e import *

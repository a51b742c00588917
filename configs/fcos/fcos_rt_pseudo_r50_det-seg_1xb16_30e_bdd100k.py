"""FCOS-RT with a segmentation head on BDD100K, pseudo labels beside the ground truth: the paper's MTL baseline.

Source: MCLGS (Igarashi and Yoneji 2022), section 4.1.2 with Eq. 9; "MTL baseline" of Table 4.
Hardware: 1 GPU (the paper does not say which).
Expected time: not run.
Expected AP / mIoU: not run (the paper: 0.2616 / 0.5143).
Command: perception train fcos_rt_pseudo --set model.backbone_weights=resnet50.safetensors
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.bdd100k_pseudo import *
    from .._base_.models.fcos_rt_pseudo import *
    from .._base_.runtime import *
    from .._base_.schedules.sgd_30e import *

"""FCOS-RT with a segmentation head and pseudo labels, balanced by MCLGS, on BDD100K.

Source: MCLGS (Igarashi and Yoneji 2022), Eqs. 3-8 and 10, a_0 = 120 and r_t = 2 as in Table 4.
Hardware: 1 GPU (the paper does not say which).
Expected time: not run.
Expected AP / mIoU: not run (the paper: 0.2631 / 0.5182).
Command: perception train fcos_rt_pseudo_det-seg-mclgs --set model.backbone_weights=resnet50.safetensors
"""

from mmengine.config import read_base

with read_base():
    from ....configs._base_.datasets.bdd100k_pseudo import *
    from ....configs._base_.models.fcos_rt_pseudo import *
    from ....configs._base_.runtime import *
    from ....configs._base_.schedules.sgd_30e import *

optim_wrapper.update(balancer=dict(name="mclgs", pacing=dict(name="ratio", initial=120.0, ratio=2.0)))

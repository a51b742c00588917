"""FCOS-RT with a segmentation head and pseudo labels, balanced by MGDA, on BDD100K.

Source: MCLGS's Table 4, MGDA.
Hardware: 1 GPU (the paper does not say which).
Expected time: not run.
Expected AP / mIoU: not run (the paper: 0.1533 / 0.4661).
Command: perception train fcos_rt_pseudo_det-seg-mgda --set model.backbone_weights=resnet50.safetensors
"""

from mmengine.config import read_base

with read_base():
    from ....configs._base_.datasets.bdd100k_pseudo import *
    from ....configs._base_.models.fcos_rt_pseudo import *
    from ....configs._base_.runtime import *
    from ....configs._base_.schedules.sgd_30e import *

optim_wrapper.update(balancer="mgda")

"""FCOS nano, balanced by PCGrad, on the synthetic world.

Source: MCLGS's Table 4, PCGrad.
Hardware: 2 CPU cores, no GPU.
Expected time: not run.
Expected AP / mIoU: not run.
Command: perception train fcos_nano_det-seg-pcgrad
"""

from mmengine.config import read_base

with read_base():
    from ....configs._base_.datasets.bdd100k_synthetic import *
    from ....configs._base_.models.fcos_nano import *
    from ....configs._base_.runtime import *
    from ....configs._base_.schedules.sgd_nano import *

optim_wrapper.update(balancer="pcgrad")

"""FCOS nano, balanced by MCLGS, on the synthetic world.

Source: MCLGS (Igarashi and Yoneji 2022), Eqs. 3-8 and 10, a_0 = 120 and r_t = 2 as in Table 4.
Hardware: 2 CPU cores, no GPU.
Expected time: 515 s of training with one thread on a busy machine.
Expected AP / mIoU: 0.042 / 0.266, one seed, measured.
Command: perception train fcos_nano_det-seg-mclgs
"""

from mmengine.config import read_base

with read_base():
    from ....configs._base_.datasets.bdd100k_synthetic import *
    from ....configs._base_.models.fcos_nano import *
    from ....configs._base_.runtime import *
    from ....configs._base_.schedules.sgd_nano import *

optim_wrapper.update(balancer=dict(name="mclgs", pacing=dict(name="ratio", initial=120.0, ratio=2.0)))

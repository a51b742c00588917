"""FCOS-RT with a segmentation head, trained with pseudo labels beside the ground truth.

Source: MCLGS (Igarashi and Yoneji 2022), Eq. 9 and the weights below it.
Size: 33,235,941 parameters, 33,235,941 of them trained, 53,173 values in buffers.
"""

from mmengine.config import read_base

with read_base():
    from .fcos_rt import *

model.update(label_weights=dict(gt=0.8, pseudo=0.2), task_weights=dict(det=1.7, seg=0.3))

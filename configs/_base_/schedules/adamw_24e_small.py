"""The schedule of BEVFormer-Small and -Unified: 24 epochs, one sample per step.

Source: wPCGrad (Bohn et al. 2024), section 4: 24 epochs on one GPU. It gives neither the batch nor the rate;
batch 1 and rate 1e-4 are those of the det + seg fork that it was built on.
More samples per update: `optim_wrapper.accumulative_counts`, or more GPUs, with the rate scaled to the batch.
"""

from mmengine.config import read_base

with read_base():
    from .adamw_24e import *

optim_wrapper.update(optimizer=dict(lr=1e-4))

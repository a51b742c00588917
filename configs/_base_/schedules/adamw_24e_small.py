"""The schedule of BEVFormer-Small and -Unified: one sample per step, and a constant scale of each task's loss.

Source: wPCGrad (Bohn et al. 2024), section 4: 24 epochs on one GPU, and losses multiplied by constants so that they
have about the same size. It gives neither the batch, nor the rate, nor the constants. Batch 1 and rate 1e-4 are those
of the det + seg fork that it was built on. The constants are ours and not tuned on nuScenes: the ratios of
bevformer_nano's loss terms on the synthetic world, middle of 15 epochs, counted for 6 decoder layers (2.5 cls, 4.8 box,
0.33 velocity, 0.41 segmentation), rounded. They hold for every balancer and for the plain sum, so that only the
balancer differs.
More samples per update: `optim_wrapper.accumulative_counts`, or more GPUs, with the rate scaled to the batch.
"""

from mmengine.config import read_base

with read_base():
    from .adamw_24e import *

_task_scales = dict(cls=1.0, box=0.5, velocity=8.0, seg=6.0)

optim_wrapper.update(optimizer=dict(lr=1e-4), balancer=dict(name="sum", scales=_task_scales))

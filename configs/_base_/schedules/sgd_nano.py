"""FCOS nano's schedule: `sgd_30e` shrunk to some hundred steps of 8 from scratch."""

from mmengine.config import read_base

with read_base():
    from .sgd_30e import *

optim_wrapper.update(optimizer=dict(lr=0.02))
param_scheduler[0].update(end=50)
param_scheduler[1].update(milestones=[5, 7], end=8)
train_cfg.update(max_epochs=8, val_interval=8)

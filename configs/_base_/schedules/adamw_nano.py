"""The demo's schedule: everything from scratch on a few hundred samples, so a higher rate and a short warm-up."""

from mmengine.config import read_base

with read_base():
    from .adamw_24e import *

optim_wrapper.update(optimizer=dict(lr=2e-3))
optim_wrapper.pop("paramwise_cfg")  # nothing is pretrained, so the backbone learns at the full rate
param_scheduler[0].update(end=100)
param_scheduler[1].update(T_max=4, end=4)
train_cfg.update(max_epochs=4, val_interval=4)

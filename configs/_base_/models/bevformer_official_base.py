"""Upstream's BEVFormer base: small with four feature levels, 6 encoder layers and a 200 × 200 BEV, at full size.

Source: projects/configs/bevformer/bevformer_base.py of fundamentalvision/BEVFormer. Input 1600 × 900 padded to
1600 × 928, BGR less the mean.
Size: 69,034,947 parameters, 68,707,193 of them trained, 105,448 values in buffers.
"""

from mmengine.config import read_base

with read_base():
    from .bevformer_official_small import *

_bev_size = dict(bev_h=200, bev_w=200)

model.img_backbone.update(out_indices=(1, 2, 3))
model.img_neck.update(in_channels=[512, 1024, 2048], num_outs=4, relu_before_extra_convs=True)
model.bev_encoder.update(num_layers=6, num_levels=4, **_bev_size)
model.box_head.update(_bev_size)
model.update(activation_checkpointing=())

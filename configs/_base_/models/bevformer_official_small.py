"""Upstream's BEVFormer small: tiny with a deformable ResNet-101, a 150 × 150 BEV and larger images.

Source: projects/configs/bevformer/bevformer_small.py of fundamentalvision/BEVFormer. Input 1280 × 720 padded to
1280 × 736, BGR less the mean. The backbone's activations are computed again in the backward pass, as upstream's
`with_cp` has it, though not by mmdet's way, which refuses `torch.autograd.grad`, by which balancers take gradients.
Size: 59,463,619 parameters, 59,135,865 of them trained, 105,448 values in buffers.
"""

from mmengine.config import read_base

with read_base():
    from .bevformer_official_tiny import *

_bev_size = dict(bev_h=150, bev_w=150)

model.data_preprocessor.update(mean=(103.53, 116.28, 123.675), std=(1.0, 1.0, 1.0), bgr_to_rgb=False)
model.img_backbone.update(
    depth=101,
    style="caffe",
    dcn=dict(type="DCNv2", deform_groups=1),
    stage_with_dcn=(False, False, True, True),
)
model.bev_encoder.update(_bev_size)
model.box_head.update(_bev_size)
model.update(activation_checkpointing=("img_backbone.layer2", "img_backbone.layer3", "img_backbone.layer4"))

"""Upstream's BEVFormer tiny: boxes only, and the defects that its checkpoint was trained with.

Source: projects/configs/bevformer/bevformer_tiny.py of fundamentalvision/BEVFormer: ResNet-50, one level, 50 × 50 BEV,
3 + 6 layers. Input 800 × 450 padded to 800 × 480, RGB ImageNet normalisation. History turns about cell (100, 100), and
the shift moves the current reference points too, as the code did when the checkpoints were published; for a training
from scratch both are better off: `model.upstream_compat=None`.
Size: 33,521,157 parameters, 33,245,627 of them trained, 53,173 values in buffers.
"""

from mmengine.config import read_base

with read_base():
    from .bevformer_tiny import *

model.update(seg_head=None, upstream_compat=dict(rotate_center=(100.0, 100.0), aliased_shift=True))

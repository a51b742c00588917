"""FCOS-RT with a segmentation head on P3–P5 alone, at stride 8: the pyramid of FCOS-RT as it is.

Source: the other reading of MCLGS, see `fcos_rt`. Cheaper by P2 and by a quarter of the segmentation's resolution.
Size: 31,989,477 parameters, 31,989,477 of them trained, 53,173 values in buffers.
"""

from mmengine.config import read_base

with read_base():
    from .fcos_rt import *

model.img_neck.update(start_level=1, num_outs=3)
model.box_head.update(levels=(0, 1, 2))
model.seg_head.update(levels=(0, 1, 2), strides=(8, 16, 32), common_stride=8)

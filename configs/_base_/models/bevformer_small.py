"""BEVFormer-Small as wPCGrad trains it: tiny with a 150 × 150 BEV, a segmentation head and smaller images.

Source: wPCGrad (Bohn et al. 2024), section 4, whose code is the det + seg fork of BEVFormer
(Bin-ze/BEVFormer_segmentation_detection): its bevformer_small_seg_det.py with a ResNet-50 without deformable
convolutions: 3 encoder and 6 decoder layers, 900 queries, one feature level (C5), map of ±30 m × ±15 m.
Input 512 × 288, RGB ImageNet normalisation, frozen batch norms, torchvision's ResNet-50 in `model.backbone_weights`.
Size: 43,866,761 parameters, 43,591,231 of them trained, 58,951 values in buffers; the paper says 43.9 M.
"""

from mmengine.config import read_base

with read_base():
    from .bevformer_tiny import *

_bev_size = dict(bev_h=150, bev_w=150)

model.bev_encoder.update(_bev_size)
model.box_head.update(_bev_size)
model.seg_head.update(_bev_size)

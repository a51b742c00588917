"""BEVFormer nano with one decoder: `bevformer_nano`, but the map comes from patch queries in the box decoder.

Source: ours, to run BEVFormer-Unified (wPCGrad, section 4) on the synthetic world. 10 × 20 patches of 5.12 m over the
range of the boxes, four deconvolutions to 160 × 320 pixels of 0.32 m; the same losses as nano's.
Size: 1,078,015 parameters, 1,078,005 of them trained, 1,695 values in buffers.
"""

from mmengine.config import read_base

from perception.models import PatchSegHead

with read_base():
    from .bevformer_nano import *

model.pop("seg_head")
model.update(
    seg_head=dict(
        type=PatchSegHead,
        map_x_range=(-25.6, 25.6),
        map_y_range=(-51.2, 51.2),
        map_resolution=0.32,
        patch_size=5.12,
        loss_dice_weight=1.0,
        **_bev,
    )
)

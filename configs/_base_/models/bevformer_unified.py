"""BEVFormer-Unified of wPCGrad: BEVFormer-Small without a segmentation decoder; the box decoder makes the map as well.

Source: wPCGrad (Bohn et al. 2024), section 4. What it leaves open is chosen and explained in
`perception/models/patch_seg_head.py`; in short: patches of 5.12 m, 20 × 20 over the range of the boxes, each a query
with a learned embedding and its centre as fixed reference point; box and patch queries see each other; four
deconvolutions with group norm to 320 × 320 pixels of 0.32 m. The map's range is the paper's, its resolution is ours.
Input 512 × 288, RGB ImageNet normalisation, frozen batch norms, torchvision's ResNet-50 in `model.backbone_weights`.
Size: 39,576,713 parameters, 39,301,183 of them trained, 53,173 values in buffers; the paper gives no count.
"""

from mmengine.config import read_base

from perception.models import PatchSegHead

with read_base():
    from .bevformer_small import *

model.pop("seg_head")
model.update(
    seg_head=dict(
        type=PatchSegHead,
        map_x_range=(-51.2, 51.2),
        map_y_range=(-51.2, 51.2),
        map_resolution=0.32,
        patch_size=5.12,
        pc_range=_pc_range,
        embed_dims=256,
        **_bev_size,
    )
)

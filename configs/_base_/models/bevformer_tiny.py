"""BEVFormer tiny with a segmentation head: upstream's tiny sizes.

Source: bevformer_tiny.py of BEVFormer (ResNet-50, one level, 50 × 50 BEV, 3 + 6 layers, 900 queries) and
SegEncode of Bin-ze/BEVFormer_segmentation_detection. Input 800 × 450 padded to 800 × 480, RGB ImageNet normalisation.
The backbone starts from `model.backbone_weights` (a local torchvision ResNet-50 file) where that is set.
Size: 38,721,161 parameters, 38,445,631 of them trained, 58,951 values in buffers; without the
segmentation head upstream's 33,521,157 parameters.
"""

from mmdet.models.backbones import ResNet
from mmdet.models.necks import FPN

from perception.models import BEVDataPreprocessor, BEVEncoder, BEVFormer, BoxHead, SegHead

_pc_range = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)
_bev = dict(pc_range=_pc_range, bev_h=50, bev_w=50, embed_dims=256)

model = dict(
    type=BEVFormer,
    data_preprocessor=dict(type=BEVDataPreprocessor, pad_size_divisor=32),
    backbone_weights=None,
    img_backbone=dict(
        type=ResNet,
        depth=50,
        out_indices=(3,),
        frozen_stages=1,
        norm_cfg=dict(type="BN", requires_grad=False),
        norm_eval=True,
        style="pytorch",
    ),
    img_neck=dict(type=FPN, in_channels=[2048], out_channels=256, add_extra_convs="on_output", num_outs=1),
    bev_encoder=dict(type=BEVEncoder, num_layers=3, max_cameras_per_cell=2, **_bev),
    box_head=dict(
        type=BoxHead,
        num_query=900,
        num_layers=6,
        post_center_range=(-61.2, -61.2, -10.0, 61.2, 61.2, 10.0),
        **_bev,
    ),
    seg_head=dict(type=SegHead, **_bev),
)

"""BEVFormer nano: the demo's model, small enough to train from scratch on two CPU cores.

Source: ours; BEVFormer's structure with the first three stages of a ResNet-18 at 24 base channels (two levels, strides
8 and 16), a 64 × 32 BEV, 2 + 3 layers, 150 queries in three groups while training (Group DETR), and a narrow
segmentation U-Net at twice the map's pixel size. Aids for training from scratch in minutes, all off elsewhere:
`focused_init`, reference points spread over the grid, `code_scale`, the heatmap loss on the BEV and the perspective
loss on the image features. Input 352 × 144, RGB ImageNet normalisation.
Size: 1,273,279 parameters, 1,273,269 of them trained, 3,153 values in buffers (backbone 394,584, neck
83,200, encoder 242,080, box head 247,513, segmentation head 303,172, heatmap 650, perspective head 2,080).
"""

from mmdet.models.backbones import ResNet
from mmdet.models.necks import FPN

from perception.models import (
    BEVDataPreprocessor,
    BEVEncoder,
    BEVFormer,
    BoxHead,
    CenterHeatmap,
    PerspectiveHead,
    SegHead,
)

# Along the road as far as nuScenes scores, across it half as far: 99.7 % of the world's boxes, in cells of 1.6 m. The
# lowest of the pillar's four points lies on the ground, 1.8 m below the LiDAR.
_pc_range = (-25.6, -51.2, -2.3, 25.6, 51.2, 2.7)
_bev = dict(pc_range=_pc_range, bev_h=64, bev_w=32, embed_dims=64)

model = dict(
    type=BEVFormer,
    data_preprocessor=dict(type=BEVDataPreprocessor, pad_size_divisor=16),
    img_backbone=dict(
        type=ResNet,
        depth=18,
        base_channels=24,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(1, 2),
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=False,
        zero_init_residual=False,
    ),
    img_neck=dict(type=FPN, in_channels=[48, 96], out_channels=64, num_outs=2),
    bev_encoder=dict(
        type=BEVEncoder,
        num_layers=2,
        num_levels=2,
        num_heads=4,
        num_points_spatial=4,
        max_cameras_per_cell=2,
        dropout=0.0,
        focused_init=True,
        **_bev,
    ),
    box_head=dict(
        type=BoxHead,
        num_query=150,
        num_layers=3,
        num_heads=4,
        dropout=0.0,
        num_query_groups=3,
        reference_init="grid",
        code_scale=(1.0, 1.0, 3.0, 3.0, 1.0, 3.0, 3.0, 3.0, 30.0, 30.0),
        with_box_refine=True,
        **_bev,
    ),
    seg_head=dict(type=SegHead, width=16, reduce_dims=32, output_stride=2, loss_dice_weight=1.0, **_bev),
    center_heatmap=dict(type=CenterHeatmap, loss_weight=0.5, **_bev),
    perspective_head=dict(type=PerspectiveHead, embed_dims=64, num_levels=2, loss_box_weight=0.5),
)

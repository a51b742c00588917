"""FCOS nano: FCOS and segmentation small enough to train from scratch on two CPU cores.

Source: ours; `fcos_rt`'s structure with the first three stages of a ResNet-18 at 32 base channels, a pyramid of 64
channels, and two convolutions per tower. Input 256 × 144, a fifth of BDD100K's images: so both heads read the strides
4, 8 and 16, and sizes of interest are 32 and 64 pixels, RGB ImageNet normalisation.
Size: 1,130,309 parameters, 1,130,309 of them trained, 2,255 values in buffers (backbone 699,168, neck 125,312, box
head 156,626, segmentation head 149,203).
"""

from mmdet.models.backbones import ResNet
from mmdet.models.necks import FPN

from perception.models import FCOSHead2D, FCOSMultiTask, ImageDataPreprocessor, PanopticFPNHead

_pyramid = dict(in_channels=64, levels=(0, 1, 2), strides=(4, 8, 16))

model = dict(
    type=FCOSMultiTask,
    data_preprocessor=dict(type=ImageDataPreprocessor, pad_size_divisor=16),
    img_backbone=dict(
        type=ResNet,
        depth=18,
        base_channels=32,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(0, 1, 2),
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=False,
        zero_init_residual=False,
    ),
    img_neck=dict(type=FPN, in_channels=[32, 64, 128], out_channels=64, num_outs=3),
    box_head=dict(
        type=FCOSHead2D,
        num_classes=10,
        regress_ranges=((-1.0, 32.0), (32.0, 64.0), (64.0, 1e8)),
        feat_channels=64,
        stacked_convs=2,
        num_groups=16,
        **_pyramid,
    ),
    seg_head=dict(
        type=PanopticFPNHead, num_classes=19, common_stride=4, feat_channels=64, num_groups=16, **_pyramid
    ),
)

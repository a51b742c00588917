"""FCOS-RT with a segmentation head on the same ResNet-50 and FPN, as MCLGS trains it.

Source: MCLGS (Igarashi and Yoneji 2022), section 4.1.2: backbone, FPN and box head of FCOS-RT, the segmentation head of
Panoptic FPN. The paper does not say which levels feed the latter. Here P2–P5, as in Panoptic FPN itself: poles and
distant signs are a cell or less at P3's stride of 8, and the paper's relative model size, 1.15, is nearer to it (1.12;
with P3–P5, `fcos_rt_p3`, 1.10; with `seg_head.feat_channels=256` it would be 1.15). FCOS reads P3–P5 as ever.
All of the backbone is trained, with batch statistics, as in FCOS-RT; it starts from `model.backbone_weights` (a local
torchvision ResNet-50 file) where that is set. RGB ImageNet normalisation.
Size: 33,235,941 parameters, 33,235,941 of them trained, 53,173 values in buffers (backbone 23,508,032, neck
3,344,384, box head 4,757,266, segmentation head 1,626,259).
"""

from mmdet.models.backbones import ResNet
from mmdet.models.necks import FPN

from perception.models import FCOSHead2D, FCOSMultiTask, ImageDataPreprocessor, PanopticFPNHead

model = dict(
    type=FCOSMultiTask,
    data_preprocessor=dict(type=ImageDataPreprocessor, pad_size_divisor=32),
    backbone_weights=None,
    img_backbone=dict(
        type=ResNet,
        depth=50,
        out_indices=(0, 1, 2, 3),
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=False,
        style="pytorch",
    ),
    img_neck=dict(type=FPN, in_channels=[256, 512, 1024, 2048], out_channels=256, num_outs=4),
    box_head=dict(type=FCOSHead2D, in_channels=256, num_classes=10, levels=(1, 2, 3), strides=(8, 16, 32)),
    seg_head=dict(
        type=PanopticFPNHead,
        in_channels=256,
        num_classes=19,
        levels=(0, 1, 2, 3),
        strides=(4, 8, 16, 32),
        common_stride=4,
    ),
)

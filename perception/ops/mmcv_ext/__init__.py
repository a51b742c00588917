"""Stand-in for mmcv's compiled extension ``mmcv._ext``: the ops this project reaches, in plain torch.

Signatures, argument names and output arguments are those that ``mmcv/ops/*.py`` (2.1.0) calls with. Every
other name resolves to a function that raises ``NotImplementedError`` when it is called.
"""

from perception.ops.mmcv_ext.attention import ms_deform_attn_backward, ms_deform_attn_forward
from perception.ops.mmcv_ext.boxes import bbox_overlaps, box_iou_rotated, iou3d_boxes_overlap_bev_forward
from perception.ops.mmcv_ext.deform_conv import (
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    deform_conv_forward,
    modulated_deform_conv_backward,
    modulated_deform_conv_forward,
)
from perception.ops.mmcv_ext.focal_loss import sigmoid_focal_loss_backward, sigmoid_focal_loss_forward
from perception.ops.mmcv_ext.info import get_compiler_version, get_compiling_cuda_version
from perception.ops.mmcv_ext.missing import missing_op as __getattr__  # noqa: F401 - PEP 562
from perception.ops.mmcv_ext.nms import (
    iou3d_nms3d_forward,
    iou3d_nms3d_normal_forward,
    nms,
    nms_match,
    nms_rotated,
    softnms,
)
from perception.ops.mmcv_ext.points import (
    points_in_boxes_all_forward,
    points_in_boxes_cpu_forward,
    points_in_boxes_part_forward,
)
from perception.ops.mmcv_ext.roi_align import roi_align_backward, roi_align_forward

__all__ = [
    "bbox_overlaps",
    "box_iou_rotated",
    "deform_conv_backward_input",
    "deform_conv_backward_parameters",
    "deform_conv_forward",
    "get_compiler_version",
    "get_compiling_cuda_version",
    "iou3d_boxes_overlap_bev_forward",
    "iou3d_nms3d_forward",
    "iou3d_nms3d_normal_forward",
    "modulated_deform_conv_backward",
    "modulated_deform_conv_forward",
    "ms_deform_attn_backward",
    "ms_deform_attn_forward",
    "nms",
    "nms_match",
    "nms_rotated",
    "points_in_boxes_all_forward",
    "points_in_boxes_cpu_forward",
    "points_in_boxes_part_forward",
    "roi_align_backward",
    "roi_align_forward",
    "sigmoid_focal_loss_backward",
    "sigmoid_focal_loss_forward",
    "softnms",
]

"""Networks, heads and losses."""

from perception.models.bev_encoder import BEVEncoder
from perception.models.bevformer import BEVFormer
from perception.models.box_head import BoxHead
from perception.models.center_heatmap import CenterHeatmap
from perception.models.data_preprocessor import BEVDataPreprocessor
from perception.models.fcos_head import FCOSHead2D
from perception.models.fcos_multi_task import FCOSMultiTask
from perception.models.image_preprocessor import ImageDataPreprocessor
from perception.models.multi_task_model import MultiTaskModel
from perception.models.panoptic_fpn_head import PanopticFPNHead
from perception.models.patch_seg_head import PatchSegHead
from perception.models.perspective_head import PerspectiveHead
from perception.models.seg_head import SegHead

__all__ = [
    "BEVDataPreprocessor",
    "BEVEncoder",
    "BEVFormer",
    "BoxHead",
    "CenterHeatmap",
    "FCOSHead2D",
    "FCOSMultiTask",
    "ImageDataPreprocessor",
    "MultiTaskModel",
    "PanopticFPNHead",
    "PatchSegHead",
    "PerspectiveHead",
    "SegHead",
]

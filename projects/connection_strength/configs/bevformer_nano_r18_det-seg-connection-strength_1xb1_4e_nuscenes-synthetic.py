"""BEVFormer nano, balanced by connection strength, on the synthetic world.

Source: Jeong and Yoon (CVPR 2024), Algorithm 1; groups det and seg, layer norms by our extension.
Hardware: 2 CPU cores, no GPU.
Expected time: not measured; a forward and backward per group.
Expected NDS / mIoU: not run.
Command: perception train bevformer_nano_det-seg-connection-strength
"""

from mmengine.config import read_base

with read_base():
    from ....configs._base_.datasets.nuscenes_synthetic import *
    from ....configs._base_.models.bevformer_nano import *
    from ....configs._base_.runtime import *
    from ....configs._base_.schedules.adamw_nano import *

optim_wrapper.update(
    balancer=dict(
        name="connection_strength",
        groups=dict(det=("cls", "box", "velocity"), seg=("seg",)),
        trunk=("img_backbone", "img_neck", "bev_encoder"),
    )
)

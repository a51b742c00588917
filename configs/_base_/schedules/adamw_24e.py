"""BEVFormer's schedule: AdamW, warm-up over 500 steps from a third, cosine to a thousandth, 24 epochs.

Source: BEVFormer's released configs (lr 2e-4 for 8 GPUs with one sample each, backbone at a tenth, clipping at 35).
"""

from mmengine.optim import CosineAnnealingLR, LinearLR
from torch.optim import AdamW

from perception.engine import BalancedOptimWrapper

optim_wrapper = dict(
    type=BalancedOptimWrapper,
    optimizer=dict(type=AdamW, lr=2e-4, weight_decay=0.01, fused=True),
    paramwise_cfg=dict(custom_keys={"img_backbone": dict(lr_mult=0.1)}),
    clip_grad=dict(max_norm=35.0, norm_type=2),
    watch=dict(gram_interval=0),  # never measures the cosines of methods that do not need them
    precision="auto",  # bf16 where CUDA has it, see docs/training.md
)
param_scheduler = [
    dict(type=LinearLR, start_factor=1.0 / 3, by_epoch=False, begin=0, end=500),
    dict(
        type=CosineAnnealingLR,
        T_max=24,
        eta_min_ratio=1e-3,
        by_epoch=True,
        begin=0,
        end=24,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(by_epoch=True, max_epochs=24, val_interval=4)
val_cfg = dict()
test_cfg = dict()

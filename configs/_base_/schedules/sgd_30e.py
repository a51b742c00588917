"""MCLGS's schedule on BDD100K: SGD with Nesterov momentum, 30 epochs, the rate divided by ten after 16, 22 and 28.

Source: MCLGS (Igarashi and Yoneji 2022), section 4.1.2: rate 0.01 for a batch of 16, momentum 0.9, decay 1e-4, warm-up
over 500 steps (from what it does not say: here a thousandth), gradient norm at most 10.
"""

from mmengine.optim import LinearLR, MultiStepLR
from torch.optim import SGD

from perception.engine import BalancedOptimWrapper

optim_wrapper = dict(
    type=BalancedOptimWrapper,
    optimizer=dict(type=SGD, lr=0.01, momentum=0.9, weight_decay=1e-4, nesterov=True),
    clip_grad=dict(max_norm=10.0, norm_type=2),
    watch=dict(gram_interval=0),  # never measures the cosines of methods that do not need them
    precision="auto",  # bf16 where CUDA has it, see docs/training.md
)
param_scheduler = [
    dict(type=LinearLR, start_factor=1e-3, by_epoch=False, begin=0, end=500),
    dict(type=MultiStepLR, milestones=[16, 22, 28], gamma=0.1, by_epoch=True, begin=0, end=30),
]
train_cfg = dict(by_epoch=True, max_epochs=30, val_interval=2)
val_cfg = dict()
test_cfg = dict()

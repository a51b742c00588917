"""BDD100K with the labels of two teachers beside the ground truth.

Source: MCLGS (Igarashi and Yoneji 2022), section 4.1.2. Data: prepare BDD100K, train `fcos_rt_det` and `fcos_rt_seg`,
then `perception pseudo-label work_dirs/fcos_rt_det work_dirs/fcos_rt_seg --images fcos_rt --out data/bdd100k-pseudo`.
"""

from mmengine.config import read_base

with read_base():
    from .bdd100k import *

train_dataloader.dataset.update(pseudo_labels="data/bdd100k-pseudo")

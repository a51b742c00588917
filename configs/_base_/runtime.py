"""What every run has in common: seed, logs, checkpoints, one process or many."""

from mmengine.visualization import LocalVisBackend, TensorboardVisBackend, Visualizer

randomness = dict(seed=0, deterministic=False)
env_cfg = dict(cudnn_benchmark=False, mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0))
log_processor = dict(window_size=10, by_epoch=True)
visualizer = dict(type=Visualizer, vis_backends=[dict(type=LocalVisBackend), dict(type=TensorboardVisBackend)])
load_from = None
resume = False

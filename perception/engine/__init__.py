"""MMEngine side: runner, strategies, optimiser wrapper, samplers, loops, hooks."""

from perception.engine.balancing_check import check_balancing
from perception.engine.classes_check import check_config_classes
from perception.engine.deepspeed_strategy import DeepSpeedStrategy
from perception.engine.epoch_sampler import EpochSampler
from perception.engine.eval_loop import EvalLoop
from perception.engine.hooks import (
    BalancerHook,
    CheckpointHook,
    LogHook,
    RankWatchHook,
    RuntimeInfoHook,
    ScheduleHook,
    SignalHook,
    TensorboardBackend,
    TensorboardHook,
)
from perception.engine.hooks_check import check_hooks
from perception.engine.jsonl_log import read_log
from perception.engine.mixed_label_sampler import MixedLabelSampler
from perception.engine.optim_wrapper import BalancedOptimWrapper
from perception.engine.rank_failure import RankFailure
from perception.engine.run import evaluate, predict, rehearse, train
from perception.engine.run_folder import hash_config, to_plain, update_summary
from perception.engine.runner import PerceptionRunner, TrainingTerminated
from perception.engine.scene_sampler import SceneBatchSampler, SceneSampler
from perception.engine.strategies import DDPStrategy, SingleStrategy
from perception.engine.stream_sampler import StreamSampler
from perception.engine.train_loop import TrainLoop
from perception.engine.work_dir import WorkDirError

__all__ = [
    "BalancedOptimWrapper",
    "BalancerHook",
    "CheckpointHook",
    "DDPStrategy",
    "DeepSpeedStrategy",
    "EpochSampler",
    "EvalLoop",
    "LogHook",
    "MixedLabelSampler",
    "PerceptionRunner",
    "RankFailure",
    "RankWatchHook",
    "RuntimeInfoHook",
    "SceneBatchSampler",
    "SceneSampler",
    "ScheduleHook",
    "SignalHook",
    "SingleStrategy",
    "StreamSampler",
    "TensorboardBackend",
    "TensorboardHook",
    "TrainLoop",
    "TrainingTerminated",
    "WorkDirError",
    "check_balancing",
    "check_config_classes",
    "check_hooks",
    "evaluate",
    "hash_config",
    "predict",
    "read_log",
    "rehearse",
    "to_plain",
    "train",
    "update_summary",
]

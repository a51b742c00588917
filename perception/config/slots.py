"""Places in a config and what may stand there: which dicts are built from a type, and which keys the others have.

MMEngine's runner takes several keys of these dicts for itself (a data loader's ``dataset``, an optimiser wrapper's
``paramwise_cfg``); they are listed here, next to the arguments that the runner supplies and a config may leave out.
"""

from dataclasses import dataclass, field

PARAMWISE_KEYS = (
    "custom_keys base_lr base_wd norm_decay_mult bias_lr_mult bias_decay_mult dwconv_decay_mult dcn_offset_lr_mult "
    "flat_decay_mult bypass_duplicate"
).split()
LOADER_KEYS = (
    "dataset sampler collate_fn batch_size num_workers drop_last persistent_workers pin_memory prefetch_factor timeout"
).split()
DIST_KEYS = "backend init_method world_size rank store group_name init_backend".split()


@dataclass(frozen=True)
class Slot:
    """One kind of place.

    Attributes:
        needs_type: a dict here must name a type.
        default: dotted name of the type that is built when none is named.
        supplied: arguments that come from elsewhere and are never missing.
        checks_required: whether arguments without a default must be present.
        extra: keys accepted besides the constructor's.
        keys: all keys, for dicts that are not built from a type; None: any.
        children: kinds of the places below, by key; ``*`` stands for every other key.
    """

    needs_type: bool = False
    default: str | None = None
    supplied: frozenset[str] = frozenset()
    checks_required: bool = False
    extra: frozenset[str] = frozenset()
    keys: frozenset[str] | None = None
    children: dict[str, str] = field(default_factory=dict)


def _built(*, supplied: str = "", extra: str = "", required: bool = True, **children: str) -> Slot:
    return Slot(
        needs_type=True,
        supplied=frozenset(supplied.split()),
        extra=frozenset(extra.split()),
        checks_required=required,
        children=children,
    )


_DEFAULT_HOOKS = {
    "rank_watch": "RankWatchHook",
    "runtime_info": "RuntimeInfoHook",
    "logger": "LogHook",
    "param_scheduler": "ScheduleHook",
    "balancer": "BalancerHook",
    "tensorboard": "TensorboardHook",
    "signals": "SignalHook",
    "checkpoint": "CheckpointHook",
}
_LOADER_CHILDREN = {
    "dataset": "dataset",
    "sampler": "sampler",
    "collate_fn": "function",
}

SLOTS: dict[str, Slot] = {
    "runner": Slot(
        default="perception.engine.PerceptionRunner",
        extra=frozenset({"runner_type", "default_scope"}),
        children={
            "model": "model",
            "train_dataloader": "dataloader",
            "val_dataloader": "dataloader",
            "test_dataloader": "dataloader",
            "optim_wrapper": "optim_wrapper",
            "param_scheduler": "scheduler",
            "train_cfg": "train_loop",
            "val_cfg": "val_loop",
            "test_cfg": "test_loop",
            "val_evaluator": "evaluator",
            "test_evaluator": "evaluator",
            "default_hooks": "default_hooks",
            "custom_hooks": "hook",
            "strategy": "strategy",
            "randomness": "randomness",
            "env_cfg": "env_cfg",
            "visualizer": "visualizer",
            "log_processor": "log_processor",
            "auto_scale_lr": "auto_scale_lr",
            "compile": "any",
            "data_preprocessor": "typed",
        },
    ),
    "model": _built(required=True),
    "typed": Slot(),
    "any": Slot(),
    "layer": _built(required=False, extra="requires_grad"),
    "init": _built(required=False, extra="layer override"),
    "function": _built(supplied="data_batch batch", required=False),
    "dataloader": Slot(keys=frozenset(LOADER_KEYS), children=_LOADER_CHILDREN),
    "dataset": _built(pipeline="transform", dataset="dataset", datasets="dataset", metainfo="any"),
    "transform": _built(transforms="transform"),
    "sampler": _built(supplied="dataset sampler batch_size num_replicas rank"),
    "optim_wrapper": Slot(
        default="perception.engine.BalancedOptimWrapper",
        extra=frozenset({"optimizer", "paramwise_cfg", "constructor"}),
        children={
            "optimizer": "optimizer",
            "paramwise_cfg": "paramwise_cfg",
            "clip_grad": "clip_grad",
            "watch": "watch",
            "loss_scale": "loss_scale",
        },
    ),
    "optimizer": _built(supplied="params"),
    "paramwise_cfg": Slot(keys=frozenset(PARAMWISE_KEYS), children={"custom_keys": "custom_keys"}),
    "custom_keys": Slot(children={"*": "custom_key"}),
    "custom_key": Slot(keys=frozenset({"lr_mult", "decay_mult"})),
    "clip_grad": Slot(keys=frozenset({"max_norm", "norm_type"})),
    "watch": Slot(keys=frozenset({"gram_interval"})),
    "loss_scale": Slot(default="perception.engine.loss_scaler.LossScaler"),
    "scheduler": _built(supplied="optimizer param_name", extra="convert_to_iter_based"),
    "train_loop": Slot(
        default="perception.engine.TrainLoop",
        supplied=frozenset({"runner", "dataloader"}),
        checks_required=True,
    ),
    "val_loop": Slot(
        default="perception.engine.EvalLoop", supplied=frozenset({"runner", "dataloader", "evaluator"})
    ),
    "test_loop": Slot(
        default="perception.engine.EvalLoop", supplied=frozenset({"runner", "dataloader", "evaluator"})
    ),
    "evaluator": _built(metrics="evaluator"),
    "default_hooks": Slot(
        keys=frozenset(_DEFAULT_HOOKS),
        children={name: f"{name} hook" for name in _DEFAULT_HOOKS},
    ),
    **{f"{name} hook": Slot(default=f"perception.engine.{hook}") for name, hook in _DEFAULT_HOOKS.items()},
    "hook": _built(extra="priority"),
    "strategy": _built(required=False),
    "visualizer": _built(vis_backends="vis_backend"),
    "vis_backend": _built(supplied="save_dir"),
    "log_processor": Slot(default="mmengine.runner.LogProcessor"),
    "randomness": Slot(keys=frozenset({"seed", "diff_rank_seed", "deterministic"})),
    "auto_scale_lr": Slot(keys=frozenset({"base_batch_size", "enable"})),
    "env_cfg": Slot(
        keys=frozenset({"cudnn_benchmark", "mp_cfg", "dist_cfg", "resource_limit"}),
        children={"mp_cfg": "mp_cfg", "dist_cfg": "dist_cfg"},
    ),
    "mp_cfg": Slot(keys=frozenset({"mp_start_method", "opencv_num_threads"})),
    "dist_cfg": Slot(keys=frozenset(DIST_KEYS)),
    "map_grid": Slot(default="perception.structures.MapGrid"),
    "upstream_compat": Slot(default="perception.models.upstream_compat.UpstreamCompat"),
}

LAYER_CLASSES = {
    "BN": "torch.nn.BatchNorm2d",
    "BN1d": "torch.nn.BatchNorm1d",
    "BN2d": "torch.nn.BatchNorm2d",
    "SyncBN": "torch.nn.SyncBatchNorm",
    "GN": "torch.nn.GroupNorm",
    "LN": "torch.nn.LayerNorm",
    "ReLU": "torch.nn.ReLU",
    "GELU": "torch.nn.GELU",
    "Conv2d": "torch.nn.Conv2d",
}
"""What mmcv's usual layer names stand for, for checks that import nothing."""

NAMED_CHILDREN = {
    "init_cfg": "init",
    "norm_cfg": "layer",
    "act_cfg": "layer",
    "conv_cfg": "layer",
    "upsample_cfg": "layer",
    "metainfo": "any",
    "grid": "map_grid",
    "map_grid": "map_grid",
    "upstream_compat": "upstream_compat",
}
"""Kinds of places inside any dict that is built from a type, by key."""

"""Speed and memory of training and prediction as a config does them, and what their steps consist of.

Two stretches of steps follow each other in one process. The first runs as always and gives the totals. In the second
the parts are timed; on CUDA every reading of the clock waits for the device, which costs time, so that its step is
given beside it. Both read fresh batches from the config's own loader.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Literal, get_args

import torch
from mmengine.config import Config
from torch.utils.data import DataLoader

from perception.config import ConfigError
from perception.engine.benchmark import time_items
from perception.engine.data_loading import build_dataloader
from perception.engine.evaluation_parts import evaluation_parts
from perception.engine.precision import autocast, precision_of
from perception.engine.rng import isolated_rng
from perception.engine.run_folder import describe_environment
from perception.engine.runner import PerceptionRunner
from perception.engine.step_meter import BatchHook, StepEndHook, StepMeter, count_samples
from perception.engine.task_forwards import predict_by_groups

Mode = Literal["train", "predict"]

_NOT_TRAINED = ("train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler", "auto_scale_lr")
_NOT_EVALUATED = tuple(
    f"{name}_{part}" for name in ("val", "test") for part in ("dataloader", "evaluator", "cfg")
)
_NUM_ITEMS = 8


def benchmark_model(
    cfg: Config,
    *,
    mode: Mode = "train",
    batch_size: int | None = None,
    num_steps: int = 10,
    num_warmup: int = 3,
    device: str | None = None,
) -> dict[str, Any]:
    """Measure the steps of a config.

    A training step is the one of `perception train`: its loader, its optimiser wrapper with the balancing method,
    clipping and precision, its hooks with the log, but for checkpoints, evaluations and TensorBoard. A prediction is
    the one of `perception test` without the metrics.

    Args:
        cfg: the config; not changed.
        mode: what is measured.
        batch_size: samples per step; None: the config's.
        num_steps: steps measured, twice; rounded up to whole accumulation windows.
        num_warmup: steps before, not measured.
        device: "cpu" or "cuda"; None: CUDA where it is there.

    Returns:
        JSON-able: totals, `memory`, `data`, `breakdown`, and what was measured where; see `step_page`.

    Raises:
        ConfigError: an unknown mode, a device that is not there, or a batch that is larger than the data set.
    """
    if mode not in get_args(Mode):
        raise ConfigError(f"mode is {mode!r}; allowed: {', '.join(get_args(Mode))}")
    _check_device(device)
    options = {key: cfg[key] for key in cfg if key not in ("resume", "load_from")}
    name = "train_dataloader" if mode == "train" else "test_dataloader"
    config = cfg.get(name) if mode == "train" else evaluation_parts(cfg)[0]
    if config is None:
        raise ConfigError(
            f"the config has no {name}, so it trains nothing. Use --mode predict, or another config"
        )
    config = dict(config)
    if batch_size is not None:
        config["batch_size"] = batch_size
    loader = build_dataloader(config, seed=(cfg.get("randomness") or {}).get("seed") or 0)
    batch_size = config.get("batch_size", 1)
    num_samples = len(loader.dataset)
    if batch_size > num_samples:
        raise ConfigError(
            f"the batch size is {batch_size}, but the data set of {name} has {num_samples} sample(s). Choose "
            f"--batch-size {num_samples} or less, or more data"
        )
    with isolated_rng():
        indices = list(islice(loader.sampler, _NUM_ITEMS))
        for index in indices:  # so that what is cached at the first reading is
            _ = loader.dataset[index]
        items = time_items(loader.dataset, indices)
    with tempfile.TemporaryDirectory(prefix="perception-bench-") as folder:
        options |= {"work_dir": folder, "log_level": "ERROR", "visualizer": dict(vis_backends=[])}
        measure = _measure_training if mode == "train" else _measure_prediction
        result = measure(options, loader, num_steps=num_steps, num_warmup=num_warmup)
    num_workers = config.get("num_workers", 0)
    data = {"ms_per_item": round(items["ms_per_item"], 3), "num_workers": num_workers}
    return {
        "mode": mode,
        "batch_size": batch_size,
        **result,
        "data": data,
        "environment": describe_environment(),
    }


def _measure_training(
    options: Mapping[str, Any], loader: DataLoader, *, num_steps: int, num_warmup: int
) -> dict[str, Any]:
    wrapper_config = options.get("optim_wrapper") or {}
    window = wrapper_config.get("accumulative_counts", 1)
    num_steps = -(-num_steps // window) * window
    # One window more: a run updates at its end even in mid-window, which here would be one update too many.
    train_cfg = _lengthened(options["train_cfg"], len(loader), num_warmup + 2 * num_steps + window)
    changes = {
        "train_cfg": train_cfg,
        "default_hooks": {**(options.get("default_hooks") or {}), "checkpoint": None},
    }
    dropped = _NOT_EVALUATED
    runner = PerceptionRunner.from_cfg({**{k: v for k, v in options.items() if k not in dropped}, **changes})
    runner._train_dataloader = loader
    step_end = StepEndHook(num_steps=num_steps, num_warmup=num_warmup)
    runner.register_hook(step_end)
    runner.register_hook(BatchHook(step_end))
    try:
        runner.train()
    finally:
        if step_end.meter is not None:
            step_end.meter.close()
    assert step_end.meter is not None
    wrapper = runner.optim_wrapper
    return {
        **step_end.meter.result(),
        "tasks": list(getattr(runner.bare_model, "task_names", ())),
        "balancer": _name(wrapper_config.get("balancer")),
        "precision": wrapper.precision,
        "accumulative_counts": window,
        "num_skipped": wrapper.num_skipped,
    }


def _measure_prediction(
    options: Mapping[str, Any], loader: DataLoader, *, num_steps: int, num_warmup: int
) -> dict[str, Any]:
    dropped = (*_NOT_TRAINED, *_NOT_EVALUATED)
    runner = PerceptionRunner.from_cfg({key: value for key, value in options.items() if key not in dropped})
    runner.convert_for(options.get("optim_wrapper"))
    runner.strategy.prepare(runner.model)
    model = runner.bare_model.eval()
    test_cfg = options.get("test_cfg") or {}
    precision = test_cfg.get("precision") or precision_of(options.get("optim_wrapper"))
    meter = StepMeter(model, optim_wrapper=None, num_steps=num_steps, num_warmup=num_warmup)
    meter.start()
    try:
        for batch in _batches(loader, model):
            meter.batch_arrives(count_samples(batch))
            with torch.no_grad(), autocast(precision):
                predict_by_groups(model, runner.task_plan, model.test_step, batch)
            meter.step_ends()
            if meter.is_finished:
                break
    finally:
        meter.close()
    return {**meter.result(), "tasks": list(getattr(model, "task_names", ())), "precision": precision}


def _batches(loader: DataLoader, model: Any) -> Iterator[Any]:
    """The loader's batches again and again, each time without a history."""
    while True:
        if hasattr(model, "reset_history"):
            model.reset_history()
        yield from loader


def _name(balancer: Any) -> str:
    if isinstance(balancer, Mapping):
        balancer = balancer.get("name")
    return "sum" if balancer is None else balancer if isinstance(balancer, str) else type(balancer).__name__


def _lengthened(train_cfg: Mapping[str, Any], epoch_length: int, num_steps: int) -> dict[str, Any]:
    """The training's length, made long enough for a number of steps."""
    if train_cfg.get("by_epoch", True):
        num_epochs = -(-num_steps // max(1, epoch_length))
        return {**train_cfg, "max_epochs": max(train_cfg.get("max_epochs") or 1, num_epochs)}
    return {**train_cfg, "max_iters": max(train_cfg.get("max_iters") or 1, num_steps)}


def _check_device(device: str | None) -> None:
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise ConfigError(
            "--device cuda: torch finds no CUDA device here. Leave --device out, or use --device cpu"
        )
    if device == "cpu" and has_cuda:
        raise ConfigError(
            "device cpu, but a CUDA device is visible. Hide it: set CUDA_VISIBLE_DEVICES= before the start"
        )
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ConfigError("bench model measures one process; start it without torchrun")

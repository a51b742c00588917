"""Builds loaders whose batches depend on seed, epoch and position only."""

import inspect
import os
import random
import signal
import threading
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATA_SAMPLERS, DATASETS, Registry
from torch.utils.data import DataLoader

from perception.engine.epoch_dataset import EpochDataset
from perception.engine.epoch_sampler import EpochSampler
from perception.engine.hooks.signal_hook import STOP_SIGNALS
from perception.engine.scene_sampler import SceneBatchSampler, SceneSampler
from perception.engine.stream_sampler import check_loader
from perception.utils import stable_seed

_LOADER_KEYS = frozenset({"batch_size", "num_workers", "drop_last", "persistent_workers", "pin_memory",
                          "prefetch_factor", "timeout"})  # fmt: skip
_PARENT_CHECK_S = 1.0
_OUR_KEYS = frozenset({"dataset", "sampler", "collate_fn"})


def build_dataloader(config: Mapping[str, Any] | DataLoader, *, seed: int, rank: int = 0) -> DataLoader:
    """A loader from `dict(dataset=..., sampler=..., batch_size=..., num_workers=...)`.

    A dataset that takes a `seed` gets the run's, unless its config has one. It hears of its epoch through the index
    (see `EpochDataset`). The loader draws from a generator of its own, so that starting an iteration does not shift the
    training's random numbers. With a `SceneSampler` or a `StreamSampler`, batches read several scenes side by side. A
    sampler that takes a `batch_size` gets the loader's.

    Raises:
        ValueError: an unknown key, a missing dataset or an unsuited sampler.
    """
    if isinstance(config, DataLoader):
        return config
    unknown = sorted(set(config) - _LOADER_KEYS - _OUR_KEYS)
    if unknown:
        raise ValueError(
            f"dataloader has unknown keys {unknown}; allowed: {sorted(_LOADER_KEYS | _OUR_KEYS)}. Remove them"
        )
    if config.get("dataset") is None:
        raise ValueError("dataloader has no dataset. Add dataset=dict(type=...)")
    dataset = config["dataset"]
    dataset = _build_dataset(dataset, seed=seed) if isinstance(dataset, Mapping) else dataset
    if hasattr(dataset, "full_init"):
        dataset.full_init()
    dataset = EpochDataset(dataset, num_workers=config.get("num_workers", 0))
    sampler = config.get("sampler") or dict(type=EpochSampler)
    batch_size = config.get("batch_size", 1)
    if isinstance(sampler, Mapping):
        supplied = dict(dataset=dataset, seed=seed)
        if _takes(_kind(DATA_SAMPLERS, sampler), "batch_size"):
            supplied["batch_size"] = batch_size
        sampler = DATA_SAMPLERS.build(dict(sampler), default_args=supplied)
    check_loader(dataset, sampler, batch_size)
    options = {key: config[key] for key in _LOADER_KEYS & set(config)}
    num_workers = options.get("num_workers", 0)
    if num_workers == 0:
        # These two keys mean something to workers only, and torch refuses them without.
        for key in ("persistent_workers", "prefetch_factor"):
            options.pop(key, None)
    if isinstance(sampler, SceneSampler) and options.get("batch_size", 1) > 1:
        options.pop("drop_last", None)
        options["batch_sampler"] = SceneBatchSampler(sampler, batch_size=options.pop("batch_size"))
    else:
        options["sampler"] = sampler
    return DataLoader(
        dataset,
        collate_fn=_resolve_collate(config.get("collate_fn")),
        worker_init_fn=partial(_init_worker, seed=stable_seed(seed, "worker", rank)),
        generator=torch.Generator().manual_seed(stable_seed(seed, "loader", rank)),
        **options,
    )


def _build_dataset(config: Mapping[str, Any], *, seed: int) -> Any:
    takes_seed = _takes(_kind(DATASETS, config), "seed")
    return DATASETS.build({"seed": seed, **config} if takes_seed else dict(config))


def _takes(kind: Any, name: str) -> bool:
    return kind is not None and name in inspect.signature(kind).parameters


def _kind(registry: Registry, config: Mapping[str, Any]) -> Any:
    kind = config["type"]
    return registry.get(kind) if isinstance(kind, str) else kind


def _resolve_collate(config: Any) -> Any:
    if config is None:
        return pseudo_collate
    if isinstance(config, Mapping):
        options = dict(config)
        function = options.pop("type")
        return partial(function, **options)
    return config


def _init_worker(worker_id: int, *, seed: int) -> None:
    # A signal to the process group, or to each process of a job, must not take the workers away while the main process
    # finishes its step. They end when it closes its loader or dies.
    os.setpgid(0, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    threading.Thread(target=_obey_the_parent_alone, daemon=True).start()
    worker_seed = stable_seed(seed, worker_id)
    random.seed(worker_seed)
    np.random.seed(worker_seed % 2**32)
    torch.manual_seed(worker_seed)


def _obey_the_parent_alone() -> None:
    """Leave at a stop signal of the main process, which ends workers by it, or when that is gone; let others' pass.

    A killed rank's connections stay open for as long as a worker that inherited them lives.
    """
    parent = os.getppid()
    received = None
    while os.getppid() == parent and (received is None or received.si_pid != parent):
        received = signal.sigtimedwait(STOP_SIGNALS, _PARENT_CHECK_S)
    os._exit(0)

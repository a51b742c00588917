"""Speed and memory of a model and of its data, measured apart."""

import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from mmengine.dataset import pseudo_collate

from perception.registry import DATASETS, MODELS

_MIB = 2**20


def benchmark_data(dataset: Mapping[str, Any], *, num_items: int = 20) -> dict[str, float]:
    """Milliseconds per dataset item, in this process, without loader workers.

    Args:
        dataset: dataset config.
        num_items: items measured, spread over the dataset; one more is read before, unmeasured.

    Returns:
        `ms_per_item` (mean), `ms_median`, `ms_max`, `num_items`.
    """
    built = DATASETS.build(dict(dataset))
    _ = built[0]
    step = max(1, len(built) // num_items)
    seconds = []
    for index in list(range(0, len(built), step))[:num_items]:
        start = time.perf_counter()
        _ = built[index]
        seconds.append(time.perf_counter() - start)
    return {
        "ms_per_item": 1e3 * statistics.fmean(seconds),
        "ms_median": 1e3 * statistics.median(seconds),
        "ms_max": 1e3 * max(seconds),
        "num_items": len(seconds),
    }


def benchmark_model(
    model: Mapping[str, Any],
    dataset: Mapping[str, Any],
    *,
    training: bool,
    batch_size: int = 1,
    num_steps: int = 10,
    device: str | None = None,
) -> dict[str, Any]:
    """Samples per second and peak memory of one model on one batch that is loaded before.

    A training step is forward, backward and an AdamW update; inference is `predict`. Two steps go before, unmeasured.
    On a CPU the peak is that of the whole process since it began, so measure training and inference in processes of
    their own; on CUDA it is that of the allocator during the steps.

    Args:
        model: model config.
        dataset: dataset config that the batch is taken from.
        training: whether to measure training or inference.
        batch_size: samples in the batch.
        num_steps: steps measured.
        device: e.g. "cpu"; None takes CUDA where it is there.

    Returns:
        `samples_per_second`, `ms_per_step` (median), `peak_memory_mb`, `num_parameters`, `device`, `batch_size`.
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    torch.manual_seed(0)
    data = DATASETS.build(dict(dataset))
    batch = pseudo_collate([data[index] for index in range(min(batch_size, len(data)))])
    network = MODELS.build(dict(model)).to(place)
    network.train(training)
    step = _training_step(network, batch) if training else _inference_step(network, batch)
    for _ in range(2):
        step()
    if place.type == "cuda":
        torch.cuda.reset_peak_memory_stats(place)
    seconds = []
    for _ in range(num_steps):
        start = time.perf_counter()
        step()
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        seconds.append(time.perf_counter() - start)
    num_samples = len(batch["data_samples"])
    return {
        "samples_per_second": num_samples / statistics.median(seconds),
        "ms_per_step": 1e3 * statistics.median(seconds),
        "peak_memory_mb": _peak_memory(place),
        "num_parameters": sum(parameter.numel() for parameter in network.parameters()),
        "device": str(place),
        "batch_size": num_samples,
    }


def _training_step(network: Any, batch: dict[str, Any]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW((p for p in network.parameters() if p.requires_grad), lr=1e-6, fused=True)

    def step() -> None:
        data = network.data_preprocessor(batch, True)
        task_losses, _ = network.parse_losses(network(**data, mode="loss"))
        optimizer.zero_grad()
        task_losses.total().backward()
        optimizer.step()

    return step


def _inference_step(network: Any, batch: dict[str, Any]) -> Callable[[], None]:
    def step() -> None:
        with torch.inference_mode():
            network(**network.data_preprocessor(batch, False), mode="predict")

    return step


def _peak_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _MIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (_MIB if sys.platform == "darwin" else 1024)

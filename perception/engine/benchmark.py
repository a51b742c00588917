"""Speed of a data set."""

import statistics
import time
from collections.abc import Mapping
from typing import Any

from perception.registry import DATASETS


def benchmark_data(dataset: Mapping[str, Any], *, num_items: int = 20) -> dict[str, float]:
    """Milliseconds per dataset item, in this process, without loader workers.

    Args:
        dataset: dataset config.
        num_items: items measured, spread over the dataset; one more is read before, unmeasured.

    Returns:
        `ms_per_item` (mean), `ms_median`, `ms_max`, `num_items`.
    """
    return time_items(DATASETS.build(dict(dataset)), num_items=num_items)


def time_items(dataset: Any, *, num_items: int, read_before: bool = False) -> dict[str, float]:
    """As `benchmark_data`, of a dataset that is built already.

    Args:
        dataset: any map-style dataset.
        num_items: items measured.
        read_before: read all of them once before, unmeasured, so that files and rasterised maps are at hand.
    """
    _ = dataset[0]
    step = max(1, len(dataset) // num_items)
    chosen = list(range(0, len(dataset), step))[:num_items]
    if read_before:
        for index in chosen:
            _ = dataset[index]
    seconds = []
    for index in chosen:
        start = time.perf_counter()
        _ = dataset[index]
        seconds.append(time.perf_counter() - start)
    return {
        "ms_per_item": 1e3 * statistics.fmean(seconds),
        "ms_median": 1e3 * statistics.median(seconds),
        "ms_max": 1e3 * max(seconds),
        "num_items": len(seconds),
    }

"""Speed of a data set."""

import statistics
import time
from collections.abc import Iterable, Mapping
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
    built = DATASETS.build(dict(dataset))
    _ = built[0]
    step = max(1, len(built) // num_items)
    return time_items(built, list(range(0, len(built), step))[:num_items])


def time_items(dataset: Any, indices: Iterable[int]) -> dict[str, float]:
    """As `benchmark_data`, of a dataset that is built already, and of the items with these indices."""
    seconds = []
    for index in indices:
        start = time.perf_counter()
        _ = dataset[index]
        seconds.append(time.perf_counter() - start)
    return {
        "ms_per_item": 1e3 * statistics.fmean(seconds),
        "ms_median": 1e3 * statistics.median(seconds),
        "ms_max": 1e3 * max(seconds),
        "num_items": len(seconds),
    }

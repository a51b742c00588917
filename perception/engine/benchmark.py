"""Speed of a data set."""

import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from perception.registry import DATASETS


def benchmark_data(dataset: Mapping[str, Any], *, num_items: int = 20) -> dict[str, float]:
    """Milliseconds per dataset item, in this process, without loader workers.

    Args:
        dataset: dataset config.
        num_items: items measured, spread over the dataset; one more is read before, unmeasured.

    Returns:
        As `time_items`; where a dataset's items have different labels also `<key>/<labels>`, of items with these.
    """
    built = DATASETS.build(dict(dataset))
    _ = built[0]
    result = time_items(built, _spread(range(len(built)), num_items))
    kinds = ["+".join(kinds) for kinds in getattr(built, "label_kinds", ())]
    for kind in sorted(set(kinds)) if len(set(kinds)) > 1 else ():
        indices = [index for index, found in enumerate(kinds) if found == kind]
        part = time_items(built, _spread(indices, num_items))
        result |= {f"{key}/{kind or 'no label'}": value for key, value in part.items()}
    return result


def time_items(dataset: Any, indices: Iterable[int]) -> dict[str, float]:
    """Time the items with these indices of a dataset that is built already.

    Returns:
        `ms_per_item` (mean), `ms_median`, `ms_max`, `cpu_ms_per_item` (of all threads), `images_per_s`,
        `images_per_cpu_s` (what one core can do) and `num_items`.
    """
    seconds, cpu_seconds, num_images = [], [], 0
    for index in indices:
        start, cpu_start = time.perf_counter(), time.process_time()
        item = dataset[index]
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
        num_images += _count_images(item)
    return {
        "ms_per_item": 1e3 * statistics.fmean(seconds),
        "ms_median": 1e3 * statistics.median(seconds),
        "ms_max": 1e3 * max(seconds),
        "cpu_ms_per_item": 1e3 * statistics.fmean(cpu_seconds),
        "images_per_s": num_images / sum(seconds),
        "images_per_cpu_s": num_images / max(sum(cpu_seconds), 1e-9),
        "num_items": len(seconds),
    }


def _spread(indices: Sequence[int], count: int) -> list[int]:
    return list(indices[:: max(1, len(indices) // count)])[:count]


def _count_images(item: Any) -> int:
    """Images of an item whose `inputs.img` is (..., 3, H, W); 1 where it has none."""
    inputs = item.get("inputs") if isinstance(item, Mapping) else None
    images = inputs.get("img") if isinstance(inputs, Mapping) else None
    return 1 if images is None else math.prod(images.shape[:-3])

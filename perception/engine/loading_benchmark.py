"""What reduced decoding and an image cache bring: one data set read in each way, item by item in turn."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from perception.config import ConfigError
from perception.config.image_sizes import step_name
from perception.datasets import image_cache_problems
from perception.engine.run_folder import describe_environment
from perception.registry import DATASETS
from perception.utils.seed_statistics import markdown_table

_LOAD, _RESIZE = "LoadMultiViewImages", "ResizeMultiView"
_NUM_ROUNDS = 3


def benchmark_loading(dataset: Mapping[str, Any], *, num_items: int = 20) -> dict[str, Any]:
    """Milliseconds per item with images decoded in full, at reduced size, and from a cache, in this process.

    Each item is read in all ways one after another, so that a change of the machine's load reaches all of them; all
    files have been read once before, unmeasured. The cache is the config's, else the one beside the index.

    Args:
        dataset: dataset config, whose pipeline resizes its images to a fixed size.
        num_items: items, spread over the dataset, each read three times.

    Returns:
        `ways`: {name: `images_ms` (decoding and resizing), `item_ms`, `images_cpu_ms`, `item_cpu_ms`}, medians over the
        readings; `image_size`, `images_per_item`, `num_items`, `environment`, and `no_cache`, the reason why there is
        no cache to measure, or None.

    Raises:
        ConfigError: the pipeline loads no images or has no fixed size.
    """
    configs, size, no_cache = _ways(dataset)
    readers = {name: _Reader(config) for name, config in configs.items()}
    first = next(iter(readers.values()))
    items = range(0, len(first.dataset), max(1, len(first.dataset) // num_items))[:num_items]
    for reader in readers.values():
        for index in items:
            reader.read(index)
        reader.timings.clear()
    for _ in range(_NUM_ROUNDS):
        for index in items:
            for reader in readers.values():
                reader.read(index)
    return {
        "ways": {name: reader.medians() for name, reader in readers.items()},
        "image_size": list(size),
        "images_per_item": first.images_per_item,
        "num_items": len(items),
        "no_cache": no_cache,
        "environment": describe_environment(),
    }


def loading_table(result: Mapping[str, Any]) -> str:
    """The result as a Markdown table; the factors are by CPU time, which other processes hardly change.

    Example:
        >>> way = {"images_ms": 2.5, "item_ms": 5.0, "images_cpu_ms": 2.0, "item_cpu_ms": 4.0}
        >>> fast = {**way, "images_cpu_ms": 0.5}
        >>> result = {"ways": {"full": way, "cache": fast}, "image_size": [8, 4], "images_per_item": 6, "num_items": 1}
        >>> print(loading_table({**result, "no_cache": None}).splitlines()[3])
        | cache | 2.5 | 0.5 | 4.00 × | 5.0 | 4.0 | 1.00 × |
    """
    ways = result["ways"]
    header = ["images", "load and resize, ms", "CPU ms", "faster", "whole item, ms", "CPU ms", "faster"]
    rows = [
        [
            name,
            *_cells(way, ways["full"], "images"),
            *_cells(way, ways["full"], "item"),
        ]
        for name, way in ways.items()
    ]
    width, height = result["image_size"]
    text = markdown_table(header, rows)
    text += (
        f"\nTo {width}×{height}, {result['images_per_item']} images an item, {result['num_items']} items.\n"
    )
    return text if result["no_cache"] is None else f"{text}No cache was measured: {result['no_cache']}\n"


def _cells(way: Mapping[str, float], full: Mapping[str, float], part: str) -> list[str]:
    cpu = way[f"{part}_cpu_ms"]
    return [f"{way[f'{part}_ms']:.1f}", f"{cpu:.1f}", f"{full[f'{part}_cpu_ms'] / max(cpu, 1e-9):.2f} ×"]


def _ways(dataset: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], tuple[int, int], str | None]:
    """The dataset's config for each way, the size of the images, and why there is no cache."""
    steps = {step_name(step): step for step in dataset["pipeline"]}
    if _LOAD not in steps:
        raise ConfigError(f"--loading: the pipeline has no {_LOAD}, so there are no images to load.")
    size = steps.get(_RESIZE, steps[_LOAD]).get("size") or steps[_LOAD].get("target_size")
    if size is None:
        raise ConfigError(
            f"--loading: the pipeline resizes to no fixed size, so there is one way only. Give {_RESIZE} a size."
        )

    def with_loading(**options: Any) -> dict[str, Any]:
        pipeline = [{**step, **options} if step_name(step) == _LOAD else step for step in dataset["pipeline"]]
        return {**dataset, "pipeline": pipeline}

    cached = with_loading(target_size=size, cache_dir=steps[_LOAD].get("cache_dir") or "auto")
    ways = {
        "full": with_loading(target_size=None, cache_dir=None),
        "reduced": with_loading(target_size=size, cache_dir=None),
    }
    problems = image_cache_problems({"train_dataloader": {"dataset": cached}}, loaders=("train_dataloader",))
    if not problems:
        ways["cache"] = cached
    width, height = size
    return ways, (width, height), problems[0] if problems else None


class _Reader:
    """Reads items of a dataset and times its image steps and the whole."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.dataset = DATASETS.build(dict(config))
        self.images_per_item = 0
        self.timings: list[tuple[float, float, float, float]] = []
        self._images = (0.0, 0.0)
        steps = self.dataset.pipeline.transforms
        for number, step in enumerate(steps):
            if type(step).__name__ in (_LOAD, _RESIZE):
                steps[number] = self._timed(step)

    def _timed(self, step: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def run(results: Any) -> Any:
            wall, cpu = time.perf_counter(), time.process_time()
            results = step(results)
            self._images = (
                self._images[0] + time.perf_counter() - wall,
                self._images[1] + time.process_time() - cpu,
            )
            self.images_per_item = sum(len(frame["img"]) for frame in results["frames"])
            return results

        return run

    def read(self, index: int) -> None:
        self._images = (0.0, 0.0)
        wall, cpu = time.perf_counter(), time.process_time()
        _ = self.dataset[index]
        whole = (time.perf_counter() - wall, time.process_time() - cpu)
        self.timings.append((*self._images, *whole))

    def medians(self) -> dict[str, float]:
        names = ("images_ms", "images_cpu_ms", "item_ms", "item_cpu_ms")
        return {
            name: round(1e3 * statistics.median(values), 4)
            for name, values in zip(names, zip(*self.timings, strict=True), strict=True)
        }

"""Sizes that the steps of one image pipeline state: what is decoded or cached, and what it is resized to."""

from collections.abc import Iterator, Mapping
from typing import Any

from perception.config.types import type_name

_LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
_RESIZING = {"LoadMultiViewImages": "ResizeMultiView", "LoadImage2D": "ResizeImage"}


def image_size_problems(root: Mapping[str, Any]) -> list[str]:
    """Where `LoadMultiViewImages` or `LoadImage2D` prepares images for another size than the resizing step makes.

    Example:
        >>> load = {"type": "LoadMultiViewImages", "target_size": (512, 288)}
        >>> resize = {"type": "ResizeMultiView", "size": (800, 450)}
        >>> image_size_problems({"val_dataloader": {"dataset": {"pipeline": [load, resize]}}})[0][:67]
        'val_dataloader.dataset.pipeline.0.target_size is 512×288, but pipel'
    """
    problems: list[str] = []
    for loader in _LOADERS:
        dataset = (root.get(loader) or {}).get("dataset")
        pipeline = dataset.get("pipeline") if isinstance(dataset, Mapping) else None
        if isinstance(pipeline, (list, tuple)):
            problems += _pipeline_problems(pipeline, f"{loader}.dataset.pipeline")
    return problems


def _pipeline_problems(pipeline: list | tuple, path: str) -> Iterator[str]:
    steps = [(number, step, step_name(step)) for number, step in enumerate(pipeline)]
    for number, step, name in steps:
        if name not in _RESIZING:
            continue
        wanted = _RESIZING[name]
        resizing = next(((number, step) for number, step, name in steps if name == wanted), None)
        target, cache_dir = step.get("target_size"), step.get("cache_dir")
        if cache_dir is not None and target is None:
            yield f"{path}.{number}.cache_dir is {cache_dir!r}, but target_size, the cached images' size, is None."
        if target is None or resizing is None:
            continue
        where, resize = resizing
        size = resize.get("size")
        if size is not None and list(size) != list(target):
            yield (
                f"{path}.{number}.target_size is {_text(target)}, but pipeline.{where} resizes to {_text(size)}; they "
                "must be equal."
            )
        edges = resize.get("short_edges") or ()
        if (
            edges
            and min(target) < max(edges)
            and max(target) < (resize.get("max_long_edge") or max(target) + 1)
        ):
            yield (
                f"{path}.{number}.target_size is {_text(target)}, but pipeline.{where} resizes to short edges of up to "
                f"{max(edges)}; it must not be smaller than the largest image."
            )
        if size is None and cache_dir is not None:
            yield (
                f"{path}.{number}.cache_dir is {cache_dir!r}, but pipeline.{where} has a scale, which is that of the "
                f"originals; give it size={tuple(target)} instead."
            )


def step_name(step: Any) -> str:
    """Class name of a pipeline's step; empty where it has none."""
    return type_name(step["type"]).rpartition(".")[2] if isinstance(step, Mapping) and "type" in step else ""


def _text(size: Any) -> str:
    return "×".join(str(number) for number in size)

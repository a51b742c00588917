"""What a model's outputs mean: its classes and its tasks, compared before anything is trained or tested."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from perception.checkpoint import CheckpointError
from perception.config import ConfigError

_CLASS_KEYS = ("class_names", "classes", "CLASSES")


def read_vocabulary(model: nn.Module, dataset: Any) -> dict[str, list[str] | None]:
    """Class and task names of a model, or of the dataset where the model does not say."""
    tasks = getattr(model, "task_names", None)
    return {
        "class_names": _class_names(model) or _class_names(dataset),
        "task_names": None if tasks is None else [str(name) for name in tasks],
    }


def check_classes(
    model: nn.Module, datasets: Mapping[str, Any], metrics: Mapping[str, Sequence[Any]] | None = None
) -> None:
    """Compare the classes of a run's datasets with each other, with their metrics' and, in number, with the model's.

    Labels are positions in these lists: with another list or order an evaluation scores one class as another, silently.

    Args:
        model: may have `num_classes`.
        datasets: the loaders' names → their datasets; what a dataset does not say is not compared.
        metrics: loaders' names → what scores their samples, with the dataset's metainfo; by `classes_key` a metric says
            which of the dataset's lists its `class_names` must equal.

    Raises:
        ConfigError: shows the first difference.
    """
    for what, read in (("classes", _class_names), ("map classes", _map_classes)):
        said = {name: classes for name, dataset in datasets.items() if (classes := read(dataset)) is not None}
        for name, classes in said.items():
            first = next(iter(said))
            if classes != said[first]:
                raise ConfigError(
                    f"the {what} of {name} and {first} differ: "
                    f"{describe_difference(classes, said[first], own=name, other=first)}. Give both the same ones."
                )
    for name, dataset in datasets.items():
        for metric in (metrics or {}).get(name, ()):
            theirs = (getattr(dataset, "metainfo", None) or {}).get(getattr(metric, "classes_key", ""))
            if theirs is not None and list(metric.class_names) != list(theirs):
                difference = describe_difference(metric.class_names, theirs, own="the metric", other=name)
                raise ConfigError(
                    f"the {metric.classes_key} of {type(metric).__name__} and of the dataset of {name} differ: "
                    f"{difference}. Leave the metric's class_names out, or give both the same ones."
                )
    count = getattr(model, "num_classes", None)
    for name, dataset in datasets.items():
        classes = _class_names(dataset)
        if count is not None and classes is not None and len(classes) != count:
            raise ConfigError(
                f"the model tells {count} classes apart, the dataset of {name} has {len(classes)}: "
                f"{', '.join(classes)}. Set model.box_head.num_classes or the dataset's class_names."
            )


def _class_names(source: Any) -> list[str] | None:
    metainfo = getattr(source, "metainfo", None) or {}
    found = [getattr(source, "class_names", None), *(metainfo.get(key) for key in _CLASS_KEYS)]
    return next(([str(name) for name in names] for names in found if names), None)


def _map_classes(dataset: Any) -> list[str] | None:
    names = (getattr(dataset, "metainfo", None) or {}).get("map_classes")
    return None if names is None else [str(name) for name in names]


def check_vocabulary(here: Mapping[str, Any], state: Mapping[str, Any], *, path: str | Path) -> None:
    """Compare with a checkpoint's state; lists that either side lacks are not compared.

    Raises:
        CheckpointError: shows the first difference of the class or task list.
    """
    for key, what in (("class_names", "classes"), ("task_names", "tasks")):
        own, theirs = here.get(key), state.get(key)
        if own is None or theirs is None or list(own) == list(theirs):
            continue
        difference = describe_difference(own, theirs, own="the config", other="the checkpoint")
        raise CheckpointError(
            f"the {what} differ: {difference}. Use the config that the checkpoint was trained with, or train anew",
            path=path,
        )


def describe_difference(ours: Sequence[str], theirs: Sequence[str], *, own: str, other: str) -> str:
    """What is only in `own`, only in `other`, or in another order."""
    only_here = [name for name in ours if name not in theirs]
    only_there = [name for name in theirs if name not in ours]
    if only_here or only_there:
        return f"only in {own} {only_here}, only in {other} {only_there}"
    first = next(index for index, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
    return (
        f"same names in another order, first at position {first}: {ours[first]!r} in {own}, {theirs[first]!r} in "
        f"{other}"
    )

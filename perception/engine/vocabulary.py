"""What a model's outputs mean: its classes and its tasks, compared before anything is trained or tested."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from perception.checkpoint import CheckpointError

_CLASS_KEYS = ("class_names", "classes", "CLASSES")


def read_vocabulary(model: nn.Module, dataset: Any) -> dict[str, list[str] | None]:
    """Class and task names of a model, or of the dataset where the model does not say."""
    metainfo = getattr(dataset, "metainfo", None) or {}
    classes = getattr(model, "class_names", None) or getattr(dataset, "class_names", None)
    for key in _CLASS_KEYS:
        classes = classes or metainfo.get(key)
    tasks = getattr(model, "task_names", None)
    return {
        "class_names": None if classes is None else [str(name) for name in classes],
        "task_names": None if tasks is None else [str(name) for name in tasks],
    }


def check_vocabulary(here: Mapping[str, Any], state: Mapping[str, Any], *, path: str | Path) -> None:
    """Compare with a checkpoint's state; lists that either side lacks are not compared.

    Raises:
        CheckpointError: shows the first difference of the class or task list.
    """
    for key, what in (("class_names", "classes"), ("task_names", "tasks")):
        own, theirs = here.get(key), state.get(key)
        if own is None or theirs is None or list(own) == list(theirs):
            continue
        raise CheckpointError(
            f"the {what} differ: {describe_difference(own, theirs)}. Use the config that the checkpoint was trained "
            "with, or train anew",
            path=path,
        )


def describe_difference(own: Sequence[str], theirs: Sequence[str]) -> str:
    """What is only here, only there, or in another order."""
    only_here = [name for name in own if name not in theirs]
    only_there = [name for name in theirs if name not in own]
    if only_here or only_there:
        return f"only in the config {only_here}, only in the checkpoint {only_there}"
    first = next(index for index, (a, b) in enumerate(zip(own, theirs, strict=False)) if a != b)
    return f"same names in another order, first at position {first}: {own[first]!r} here, {theirs[first]!r} there"

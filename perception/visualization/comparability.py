"""What keeps scores of two runs from being compared: other data, other tasks, a part of the split."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from perception.utils import name_some
from perception.visualization.run_groups import RunGroup


def evaluation_data(config: Mapping[str, Any]) -> str | None:
    """What a configuration is scored on, e.g. `nuscenes v1.0-mini_mini_val.json`; None where it does not say.

    The folder of the data counts by its name only: the same data lies elsewhere on another machine.

    Example:
        >>> dataset = {"type": "x.Y", "data_root": "/data/nuscenes", "ann_file": "index/val.json"}
        >>> evaluation_data({"val_dataloader": {"dataset": dataset}})
        'nuscenes val.json'
    """
    loader = config.get("test_dataloader") or config.get("val_dataloader")
    dataset = loader.get("dataset") if isinstance(loader, Mapping) else None
    if not isinstance(dataset, Mapping) or not dataset.get("ann_file"):
        return None
    names = [PurePath(str(dataset.get(key) or "")).name for key in ("data_root", "ann_file")]
    return " ".join(name for name in names if name)


def same_data(first: RunGroup, second: RunGroup) -> bool:
    """Whether differences of scores mean anything; groups that do not say what they are scored on may be compared."""
    names = [evaluation_data(group.first.summary.config) for group in (first, second)]
    return first is second or None in names or names[0] == names[1]


def warnings_of(groups: Sequence[RunGroup], reference: RunGroup) -> list[str]:
    """Sentences on what keeps the groups from being compared."""
    found = []
    by_data: dict[str | None, list[str]] = {}
    for group in groups:
        by_data.setdefault(evaluation_data(group.first.summary.config), []).append(group.label)
    known = {data: labels for data, labels in by_data.items() if data is not None}
    if len(known) > 1:
        parts = "; ".join(f"{name_some(labels)} on {data}" for data, labels in known.items())
        found.append(
            f"These runs were scored on different data: {parts}. Differences are given only between runs on the "
            f"data of {reference.label}."
        )
    if None in by_data and len(groups) > 1:
        found.append(f"What {name_some(by_data[None])} was scored on is not known: config.json does not say.")
    by_tasks: dict[tuple[str, ...], list[str]] = {}
    for group in groups:
        if group.task is None and (tasks := group.first.log.tasks()):
            by_tasks.setdefault(tuple(sorted(tasks)), []).append(group.label)
    if len(by_tasks) > 1:
        parts = "; ".join(f"{name_some(labels)}: {', '.join(tasks)}" for tasks, labels in by_tasks.items())
        found.append(
            f"These runs learned different tasks ({parts}). A dash stands where a run has no such score."
        )
    lengths = {group.label: group.first.log.last_step for group in groups if group.first.log.last_step}
    if len(set(lengths.values())) > 1:
        parts = ", ".join(f"{label} {step:,.0f}" for label, step in lengths.items())
        found.append(f"These runs trained for different numbers of steps: {parts}.")
    partial = [group.label for group in groups if any(_is_partial(run.summary.metrics) for run in group.runs)]
    if partial:
        found.append(
            f"Not comparable. The scores of {name_some(partial)} are of a subset of the split, for a quick look only."
        )
    return found


def _is_partial(metrics: Mapping[str, Any]) -> bool:
    return metrics.get("comparable") is False or metrics.get("seg_comparable") is False

"""What the lines of a run's `log.jsonl` say of training steps and evaluations."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

SCORES = ("NDS", "mAP", "AP", "mIoU")
"""Scores of an evaluation; a record that holds one of them is an evaluation's."""

_STEP_KEYS = ("step", "iter")


def loss_series(records: Iterable[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Loss curves: the total, and per task that of the record's `tasks`, or the sum of its terms where it has none.

    A term's task is the text before the first dot of a key that names a loss ("cls.loss_focal",
    "cls.d0.loss_focal").

    Returns:
        "loss" and the tasks, in the order they appear → (step, value) pairs; values that are not finite are
        left out.

    Example:
        >>> loss_series([{"step": 1, "loss": 3.0, "cls.loss_focal": 2.0, "cls.d0.loss_focal": 0.5}])
        {'loss': [(1.0, 3.0)], 'cls': [(1.0, 2.5)]}
    """
    series: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        step = step_of(record)
        if step is None or not is_number(record.get("loss")):
            continue
        sums = {"loss": float(record["loss"])}
        if isinstance(record.get("tasks"), Mapping):
            sums |= {task: float(value) for task, value in record["tasks"].items() if is_number(value)}
        for key, value in () if "tasks" in record else record.items():
            task, dot, rest = key.partition(".")
            if dot and "loss" in rest and is_number(value):
                sums[task] = sums.get(task, 0.0) + float(value)
        for name, total in sums.items():
            series.setdefault(name, []).append((step, total))
    return series


def score_series(records: Iterable[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Scores of the evaluations: name → (step, value) pairs. An evaluation without a step comes after the last one."""
    series: dict[str, list[tuple[float, float]]] = {}
    last = 0.0
    for record in records:
        step = step_of(record)
        last = last if step is None else step
        metrics = record["metrics"] if isinstance(record.get("metrics"), Mapping) else record
        for name in SCORES:
            if is_number(metrics.get(name)):
                series.setdefault(name, []).append((last, float(metrics[name])))
    return series


def step_of(record: Mapping[str, Any]) -> float | None:
    """The training step of a record, None where it has none."""
    return next((float(record[key]) for key in _STEP_KEYS if is_number(record.get(key))), None)


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

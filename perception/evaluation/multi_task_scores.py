"""One number for several tasks: mean change against single-task models, and the geometric mean of scores."""

import math
from collections.abc import Collection, Mapping
from typing import Literal

from perception.config import did_you_mean

Scores = Mapping[str, Mapping[str, float]]
LOWER_IS_BETTER = ("mAVE", "mATE", "mASE", "mAOE", "mAAE")
"""The errors among the metrics of this package."""


def delta_m(
    scores: Scores,
    baseline: Scores,
    *,
    lower_is_better: Collection[str] = (),
    convention: Literal["drop", "gain"] = "drop",
    average: Literal["tasks", "metrics"] = "tasks",
) -> float:
    """Mean relative change against single-task models, as a fraction.

    *Source*: MCLGS, section 4.1.1 (drop, tasks); AMTL, Eq. 7 (gain, tasks); CAGrad averages over all metrics.

    Args:
        scores: task → metric → value of the multi-task model.
        baseline: the same of the single-task models, not 0.
        lower_is_better: names of the metrics that are better when lower.
        convention: "drop": positive is worse than the baseline, as in MCLGS and CAGrad; "gain": positive is better.
        average: "tasks": mean within each task, then over tasks; "metrics": over all metrics alike.

    Raises:
        ValueError: different tasks or metrics, a baseline of 0, an unknown metric in `lower_is_better`.

    Example:
        >>> delta_m({"det": {"AP": 0.22}}, {"det": {"AP": 0.20}}, convention="gain")
        0.1
    """
    if convention not in ("drop", "gain") or average not in ("tasks", "metrics"):
        raise ValueError(
            f"convention {convention!r}, average {average!r}; allowed: 'drop' or 'gain', 'tasks' or 'metrics'"
        )
    _check(scores, lower_is_better)
    gains: list[list[float]] = []
    for task, metrics in scores.items():
        if task not in baseline or set(metrics) != set(baseline[task]) or len(baseline) != len(scores):
            raise ValueError(
                f"the scores have {_shape(scores)}, the baseline {_shape(baseline)}; "
                "both need the same tasks and metrics"
            )
        row = []
        for metric, value in metrics.items():
            base = baseline[task][metric]
            if base == 0:
                raise ValueError(
                    f"the baseline's {metric} of task {task!r} is 0, so a relative change has no value"
                )
            row.append((-1 if metric in lower_is_better else 1) * (value - base) / base)
        gains.append(row)
    if average == "metrics":
        gains = [[gain for row in gains for gain in row]]
    gain = sum(sum(row) / len(row) for row in gains) / len(gains)
    return round(gain if convention == "gain" else -gain, 15)


def delta_mtl(scores: Scores, baseline: Scores, *, lower_is_better: Collection[str] = ()) -> float:
    """AMTL's Δ_MTL, Eq. 7: `delta_m` as a gain, higher is better, averaged within each task first."""
    return delta_m(scores, baseline, lower_is_better=lower_is_better, convention="gain")


def acc_mtl(scores: Scores, *, lower_is_better: Collection[str] = ()) -> float:
    """Geometric mean over tasks of the geometric means of each task's metrics; needs no baseline.

    *Source*: AMTL, Eq. 8; a metric that is better when lower enters as 1 / value. Angles in degrees.

    Args:
        scores: task → metric → value, at least 0.
        lower_is_better: names of the metrics that are better when lower.

    Returns:
        Acc_MTL; 0 if a metric is at its worst (0).

    Raises:
        ValueError: a negative or NaN value, a lower-is-better metric of 0, an unknown name in `lower_is_better`.

    Example:
        >>> acc_mtl({"det": {"AP": 0.25}, "depth": {"rmse": 4.0}}, lower_is_better=["rmse"])
        0.25
    """
    _check(scores, lower_is_better)
    total = 0.0
    for task, metrics in scores.items():
        for metric, value in metrics.items():
            is_inverse = metric in lower_is_better
            if not value >= 0 or (is_inverse and value == 0):
                raise ValueError(f"{metric} of task {task!r} is {value}; Acc_MTL needs values above 0")
            if value == 0:
                return 0.0
            total += (-1 if is_inverse else 1) * math.log(value) / (len(scores) * len(metrics))
    return math.exp(total)


def _check(scores: Scores, lower_is_better: Collection[str]) -> None:
    known = [metric for metrics in scores.values() for metric in metrics]
    if not known or not all(scores.values()):
        raise ValueError(f"the scores have {_shape(scores)}; each task needs at least one metric")
    for metric in lower_is_better:
        if metric not in known:
            raise ValueError(
                f"lower_is_better names the unknown metric {metric!r}.{did_you_mean(metric, known)} Known: {known}"
            )


def _shape(scores: Scores) -> str:
    return (
        "; ".join(f"{task}: {', '.join(sorted(metrics))}" for task, metrics in sorted(scores.items()))
        or "nothing"
    )

"""Curves of the training: losses per task, learning rate, scores of the evaluations."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from perception.visualization.charts import Line, line_chart
from perception.visualization.run_groups import Run, RunGroup
from perception.visualization.series import Series, over_runs, smooth, thinned

_POINTS, _PALE_POINTS = 120, 240


@dataclass(frozen=True)
class Chart:
    """A picture and the words above it."""

    title: str
    svg: Markup


def loss_charts(groups: Sequence[RunGroup]) -> list[Chart]:
    """The total loss and each task's: running means; of a single run every step, too, pale."""
    names = dict.fromkeys(name for group in groups for run in group.runs for name in run.log.losses)
    charts = []
    for name in names:
        lines = _lines(groups, lambda run, name=name: run.log.losses.get(name, []), is_smooth=True)  # type: ignore[misc]
        values = [value for line in lines for _, value in (*line.points, *line.pale)]
        is_log = min(values) > 0 and max(values) > 1.5 * min(values)
        title = "total loss" if name == "loss" else f"loss of {name}"
        svg = line_chart(lines, name=title, is_log=is_log)
        charts.append(Chart(title + (" (log scale)" if is_log else ""), svg))
    return charts


def rate_chart(groups: Sequence[RunGroup]) -> Chart | None:
    """The learning rate over steps."""
    lines = _lines(groups, lambda run: run.log.rates, is_smooth=False)
    return Chart("learning rate", line_chart(lines, name="learning rate", from_zero=True)) if lines else None


def score_charts(groups: Sequence[RunGroup]) -> list[Chart]:
    """Scores of the evaluations during the training."""
    names = dict.fromkeys(name for group in groups for run in group.runs for name in run.log.scores)
    charts = []
    for name in names:
        lines = _lines(groups, lambda run, name=name: run.log.scores.get(name, []), is_smooth=False)  # type: ignore[misc]
        charts.append(Chart(name, line_chart(lines, name=name, from_zero=True)))
    return charts


def _lines(groups: Sequence[RunGroup], series_of: Callable[[Run], Series], *, is_smooth: bool) -> list[Line]:
    lines = []
    for group in groups:
        found = [series for run in group.runs if (series := series_of(run))]
        if not found:
            continue
        curves = [thinned(_smoothed(series) if is_smooth else series, _POINTS) for series in found]
        points, band = over_runs(curves)
        is_alone = is_smooth and len(groups) == 1 and len(found) == 1
        if points:
            lines.append(
                Line(
                    label=group.label, colour=group.colour, points=points, band=band,
                    pale=thinned(found[0], _PALE_POINTS) if is_alone else [],
                )
            )  # fmt: skip
    return lines


def _smoothed(series: Series) -> Series:
    steps, values = np.array(series).T
    return list(zip(steps.tolist(), smooth(values).tolist(), strict=True))

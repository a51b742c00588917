"""What the report shows of the balancing: cosines, conflicts, and the numbers of each method."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup

from perception.visualization.balance_records import BalanceRecords
from perception.visualization.charts import Line, heat_strip, line_chart
from perception.visualization.charts.heat_strip import signed
from perception.visualization.report.training import Chart
from perception.visualization.run_groups import RunGroup
from perception.visualization.series import Series, mean_of, smooth, thinned

_TITLES = {
    "weights": "loss weights",
    "coefficients": "coefficients of the task gradients in the update",
    "grad_norms": "norms of the task gradients",
    "achievement": "achievement (score relative to its potential)",
    "pacing": "pacing p(t)",
    "priorities": "priorities",
    "top_share": "share of channel groups that a task leads",
}
_SHARES = ("priorities", "top_share", "conflict share")


@dataclass(frozen=True, kw_only=True)
class MatrixCell:
    """One entry of a table of tasks.

    Attributes:
        text: its number.
        tint: −1 (conflict) … 1 (agreement).
        kind: what the number counts; "self" of a task with itself.
        below: a second number.
    """

    text: str
    tint: float = 0.0
    kind: str = ""
    below: str = ""


@dataclass
class Balance:
    """The balancing of one method, of its first run.

    Attributes:
        group: the method.
        summary: one line.
        strip: cosines over steps; None where none were measured.
        tasks: heads of the matrix.
        matrix: lower left mean cosines, upper right the share of steps in conflict.
        charts: weights, coefficients, norms, and the method's own numbers, as far as they say something.
        phases: (name, first step, last step), where there are several.
    """

    group: RunGroup
    summary: str
    strip: Markup | None
    tasks: list[str]
    matrix: list[list[MatrixCell]]
    charts: list[Chart] = field(default_factory=list)
    phases: list[tuple[str, float, float]] = field(default_factory=list)


def balances(groups: Sequence[RunGroup]) -> list[Balance]:
    """Of each method whose log says something of its balancing."""
    return [_balance(group, group.first.log.balance) for group in groups if group.first.log.balance]


def conflict_chart(groups: Sequence[RunGroup]) -> Chart | None:
    """The share of pairs in conflict over steps, of all methods that measured cosines."""
    found = [(group, group.first.log.balance.conflict_share) for group in groups]
    lines = [
        Line(label=group.label, colour=group.colour, points=_running_mean(series, 0.2))
        for group, series in found
        if series
    ]
    if not lines:
        return None
    svg = line_chart(lines, name="share of task pairs in conflict", limits=(0.0, 1.0))
    return Chart("share of task pairs in conflict (running mean)", svg)


def pair_table(groups: Sequence[RunGroup]) -> tuple[list[str], list[tuple[RunGroup, list[MatrixCell], str]]]:
    """Mean cosine of each pair and the conflict share: a row per method."""
    found = [group for group in groups if group.first.log.balance.cosines]
    pairs = list(dict.fromkeys(pair for group in found for pair in group.first.log.balance.cosines))
    means = [{pair: mean_of(s) for pair, s in group.first.log.balance.cosines.items()} for group in found]
    limit = max([abs(value) for row in means for value in row.values()], default=0.0) or 1.0
    rows = []
    for group, row in zip(found, means, strict=True):
        shares = {pair: f"{_in_conflict(s):.0%}" for pair, s in group.first.log.balance.cosines.items()}
        cells = [
            MatrixCell(text=signed(row[pair]), tint=row[pair] / limit, below=shares[pair])
            if pair in row
            else MatrixCell(text="–")
            for pair in pairs
        ]
        share = group.first.log.balance.conflict_share
        rows.append((group, cells, f"{mean_of(share):.0%}" if share else "–"))
    return [pair.replace("/", " / ") for pair in pairs], rows


def _balance(group: RunGroup, records: BalanceRecords) -> Balance:
    tasks = records.tasks()
    colours = {task: number for number, task in enumerate(tasks)}
    ones = [name for name in ("weights", "coefficients") if _is_one(records.rows.get(name, {}))]
    parts = [" + ".join(records.components)] if records.components else []
    if records.conflict_share:
        parts.append(f"{mean_of(records.conflict_share):.0%} of task pairs in conflict")
    if ones:
        parts.append(" and ".join("loss weights" if name == "weights" else name for name in ones) + " all 1")
    charts = [
        _chart(name, row, colours)
        for name, row in records.rows.items()
        if name not in ones and any(row.values())
    ]
    return Balance(
        group=group,
        summary=", ".join(parts),
        strip=heat_strip(records.cosines, records.conflict_share) if records.cosines else None,
        tasks=tasks,
        matrix=_matrix(tasks, records.cosines) if records.cosines else [],
        charts=charts,
        phases=[(name, first, last) for first, last, name in records.phases]
        if len(records.phases) > 1
        else [],
    )


def _matrix(tasks: Sequence[str], cosines: Mapping[str, Series]) -> list[list[MatrixCell]]:
    means = {pair: mean_of(series) for pair, series in cosines.items()}
    limit = max(abs(value) for value in means.values()) or 1.0
    rows = []
    for row, first in enumerate(tasks):
        cells = []
        for column, second in enumerate(tasks):
            pair = next((key for key in (f"{first}/{second}", f"{second}/{first}") if key in means), None)
            if pair is None:
                cells.append(
                    MatrixCell(text="" if row == column else "–", kind="self" if row == column else "")
                )
            elif column < row:
                cells.append(
                    MatrixCell(text=signed(means[pair]), tint=means[pair] / limit, kind="mean cosine")
                )
            else:
                share = _in_conflict(cosines[pair])
                cells.append(MatrixCell(text=f"{share:.0%}", kind="share of steps in conflict"))
        rows.append(cells)
    return rows


def _chart(name: str, row: Mapping[str, Series], colours: Mapping[str, int]) -> Chart:
    lines = [
        Line(
            label=task or name.replace("_", " "),
            colour=colours.get(task, number),
            points=_running_mean(series),
        )
        for number, (task, series) in enumerate(row.items())
        if series
    ]
    values = [value for line in lines for _, value in line.points]
    is_log = name not in _SHARES and min(values) > 0 and max(values) > 20 * min(values)
    title = _TITLES.get(name, name.replace("_", " "))
    is_share = name in _SHARES
    svg = line_chart(
        lines, name=title, is_log=is_log, from_zero=min(values) >= 0 and not is_log,
        limits=(0.0, 1.0) if is_share and max(values) <= 1 else None,
    )  # fmt: skip
    return Chart(title + (" (log scale)" if is_log else ""), svg)


def _running_mean(series: Series, share: float = 0.05) -> Series:
    steps, values = np.array(series).T
    return thinned(list(zip(steps.tolist(), smooth(values, share).tolist(), strict=True)))


def _in_conflict(series: Series) -> float:
    return float(np.mean([value < 0 for _, value in series]))


def _is_one(row: Mapping[str, Series]) -> bool:
    return bool(row) and all(value == 1.0 for series in row.values() for _, value in series)

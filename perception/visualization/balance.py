"""Picture of a run's balancing over training steps: conflicts, weights, norms, whatever the log holds of it."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from perception.utils import iter_json_lines
from perception.visualization.balance_records import BalanceRecords
from perception.visualization.series import Series, binned, mean_of, smooth, with_gaps

TASK_COLOURS = ("#2f5d8a", "#d1495b", "#2a9d8f", "#e09f3e", "#7b5ea7", "#5c6b73")
"""Colours of curves, one per task."""

_DPI = 110
_WIDTH = 11.0
_MAX_EPOCH_MARKS = 24
_INK, _SOFT, _EMPTY = "#1d2530", "#5d6b7d", "#eceff3"
_CONFLICT = "#b2182b"
_PHASES = ("#cdd9e8", "#f3dcc0", "#d8e8d3", "#e6d9ec")
_TITLES = {
    "weights": "loss weights",
    "coefficients": "coefficients of the task gradients in the update",
    "grad_norms": "norms of the task gradients (before weighting, over what tasks share)",
    "achievement": "achievement (score relative to its potential)",
    "pacing": "pacing p(t)",
}
_ALWAYS_LOG = ("grad_norms",)
_SHARES = ("priorities", "top_share")

_Row = tuple[float, Callable[[Axes, Axes], None]]


def plot_balance(log_path: str | Path, out_path: str | Path) -> Path:
    """Draw cosines per pair, conflict share, projections, weights, coefficients, gradient norms and the method's own.

    All rows share the steps as their horizontal axis. What the log does not hold is left out.

    Args:
        log_path: a run's `log.jsonl`.
        out_path: picture to write, by its suffix (.png).

    Returns:
        `out_path`.

    Raises:
        ValueError: the log has no balancing lines.
    """
    records = BalanceRecords.from_log(iter_json_lines(log_path))
    if not records:
        raise ValueError(
            f"{log_path} says nothing of balancing: no training line has numbers under 'balance'. The plain sum "
            "compares no gradients: to measure their cosines in every 100th update train with --set "
            "optim_wrapper.watch.gram_interval=100, or with a method: --set optim_wrapper.balancer=pcgrad"
        )
    rows = _rows(records)
    heights = [height for height, _ in rows]
    figure = Figure(
        figsize=(_WIDTH, sum(heights) + 0.42 * len(rows) + 1.1),
        dpi=_DPI,
        layout=ConstrainedLayoutEngine(h_pad=0.05, hspace=0.02),
    )
    grid = figure.subplots(
        len(rows), 2, squeeze=False, width_ratios=(8, 1), height_ratios=heights, sharex="col"
    )
    for (_, draw), (axes, side) in zip(rows, grid, strict=True):
        side.set_axis_off()
        draw(axes, side)
        _mark_epochs(axes, records)
        _finish(axes)
    first, last = grid[0, 0], grid[-1, 0]
    first.set_xlim(records.first_step - 0.5, records.last_step + 0.5)
    _name_epochs(first, records)
    last.set_xlabel("training step", fontsize=9, color=_INK)
    figure.suptitle(
        f"{Path(log_path).resolve().parent.name}: {_summary(records)}",
        fontsize=12,
        color=_INK,
        x=0.01,
        ha="left",
    )
    path = Path(out_path)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_figure(str(path))
    return path


def _rows(records: BalanceRecords) -> list[_Row]:
    rows: list[_Row] = []
    colours = {task: TASK_COLOURS[number % len(TASK_COLOURS)] for number, task in enumerate(records.tasks())}
    if records.phases:
        rows.append((0.3, lambda axes, side: _draw_phases(axes, records)))
    if records.cosines:
        rows.append((0.3 * len(records.cosines) + 0.2, lambda axes, side: _draw_cosines(axes, side, records)))
    if records.conflict_share:
        rows.append((0.8, lambda axes, side: _draw_share(axes, side, records.conflict_share)))
    if records.projected:
        height = 0.24 * len(records.projected) + 0.2
        rows.append((height, lambda axes, side: _draw_projections(axes, side, records)))
    for name, row in records.rows.items():
        if name in ("weights", "coefficients") and _is_one(row):
            continue  # said in the title
        rows.append((1.25, partial(_draw_lines, name=name, row=row, colours=colours)))
    return rows


def _summary(records: BalanceRecords) -> str:
    parts = [" + ".join(records.components)] if records.components else []
    if records.conflict_share:
        share = np.mean([value for _, value in records.conflict_share])
        parts.append(f"{share:.0%} of task pairs in conflict")
    ones = [
        name for name in ("weights", "coefficients") if name in records.rows and _is_one(records.rows[name])
    ]
    if ones:
        parts.append(" and ".join({"weights": "loss weights"}.get(name, name) for name in ones) + " all 1")
    return ", ".join(parts) or "balancing"


def _is_one(row: Mapping[str, Series]) -> bool:
    return all(value == 1.0 for series in row.values() for _, value in series)


def _draw_cosines(axes: Axes, side: Axes, records: BalanceRecords) -> None:
    edges, values = binned(records.cosines)
    limit = max(float(np.ceil(np.nanmax(np.abs(values)) * 10) / 10), 0.1)
    mesh = _heat(axes, edges, values, cmap="RdBu", vmin=-limit, vmax=limit)
    names = [
        f"{pair.replace('/', ' / ')}  {mean_of(series):+.2f}" for pair, series in records.cosines.items()
    ]
    axes.set_yticks(range(len(names)), names)
    _title(axes, "cosine of task gradients (mean beside each pair; red: conflict)")
    _colour_bar(side, mesh, [-limit, 0, limit], [f"{-limit:+.1f}", "0", f"{limit:+.1f}"])


def _draw_projections(axes: Axes, side: Axes, records: BalanceRecords) -> None:
    edges, values = binned(records.projected)
    mesh = _heat(axes, edges, values, cmap="Oranges", vmin=0, vmax=1)
    names = [f"{pair}  {mean_of(series):.0%}" for pair, series in records.projected.items()]
    axes.set_yticks(range(len(names)), names)
    _title(axes, "share of updates in which a gradient lost its part against another's (first → second)")
    _colour_bar(side, mesh, [0, 1], ["never", "always"])


def _draw_share(axes: Axes, side: Axes, series: Series) -> None:
    steps, values = np.array(series).T
    steps, values = with_gaps(steps, smooth(values))
    axes.fill_between(steps, values, color=_CONFLICT, alpha=0.25, linewidth=0)
    axes.plot(steps, values, color=_CONFLICT, linewidth=1.6)
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.5, 1], ["0", "50 %", "100 %"])
    _title(axes, "share of pairs in conflict (running mean)")
    _legend(side, [(f"mean {mean_of(series):.0%}", _CONFLICT)])


def _draw_lines(
    axes: Axes, side: Axes, name: str, row: Mapping[str, Series], colours: Mapping[str, str]
) -> None:
    everything = np.array([value for series in row.values() for _, value in series])
    is_positive = bool((everything > 0).all())
    is_log = is_positive and (name in _ALWAYS_LOG or everything.max() > 50 * everything.min())
    is_log = is_log and name not in _SHARES
    entries = [("mean", _SOFT)] if "" not in row else []
    for number, (task, series) in enumerate(row.items()):
        colour = colours.get(task, TASK_COLOURS[number % len(TASK_COLOURS)] if task else _SOFT)
        steps, values = np.array(series).T
        smoothed = np.exp(smooth(np.log(values))) if is_log else smooth(values)
        axes.plot(*with_gaps(steps, values), color=colour, alpha=0.22, linewidth=0.7)
        marker = "o" if len(steps) == 1 else None
        axes.plot(*with_gaps(steps, smoothed), color=colour, linewidth=1.7, marker=marker, markersize=4)
        entries.append((f"{task or 'mean'}  {mean_of(series):.3g}", colour))
    if is_log:
        axes.set_yscale("log")
    elif is_positive:
        axes.set_ylim(bottom=0)
    _title(axes, _TITLES.get(name, name.replace("_", " ")) + (", log scale" if is_log else ""))
    _legend(side, entries)


def _draw_phases(axes: Axes, records: BalanceRecords) -> None:
    names = list(dict.fromkeys(phase for _, _, phase in records.phases))
    ends = [*(start for start, _, _ in records.phases[1:]), records.last_step + 1]
    span = records.last_step - records.first_step + 1
    for (start, _, phase), end in zip(records.phases, ends, strict=True):
        axes.axvspan(start - 0.5, end - 0.5, color=_PHASES[names.index(phase) % len(_PHASES)], linewidth=0)
        if (end - start) / span > 0.012 * len(phase):
            middle = (start + end - 1) / 2
            axes.text(middle, 0.5, phase, ha="center", va="center", fontsize=8, color=_INK)
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    _title(axes, "phase")


def _heat(axes: Axes, edges: np.ndarray, values: np.ndarray, **options: Any) -> Any:
    axes.set_facecolor(_EMPTY)
    rows = np.arange(len(values) + 1) - 0.5
    mesh = axes.pcolormesh(edges, rows, np.ma.masked_invalid(values), rasterized=True, **options)
    axes.set_ylim(len(values) - 0.5, -0.5)
    for row in rows[1:-1]:
        axes.axhline(row, color="white", linewidth=2)
    return mesh


def _colour_bar(side: Axes, mesh: Any, ticks: list[float], labels: list[str]) -> None:
    inset = side.inset_axes((0.0, 0.02, 0.1, 0.96))
    bar = side.figure.colorbar(mesh, cax=inset, ticks=ticks)
    bar.ax.set_yticklabels(labels, fontsize=8, color=_SOFT)
    bar.ax.tick_params(length=0)
    bar.outline.set_visible(False)


def _legend(side: Axes, entries: list[tuple[str, str]]) -> None:
    for number, (text, colour) in enumerate(entries):
        height = 0.95 - number * min(0.19, 1 / len(entries))
        side.text(0.0, height, text, color=colour, fontsize=9, fontweight="bold", va="center",
                  transform=side.transAxes)  # fmt: skip


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=9.5, fontweight="bold", color=_INK, pad=4)


def _marks(records: BalanceRecords) -> list[tuple[int, float]]:
    """Every k-th epoch's start, few enough to be told apart."""
    return records.epochs[:: max(-(-len(records.epochs) // _MAX_EPOCH_MARKS), 1)]


def _mark_epochs(axes: Axes, records: BalanceRecords) -> None:
    for _, step in _marks(records):
        if step > records.first_step:
            axes.axvline(step - 0.5, color=_INK, alpha=0.18, linewidth=0.7, linestyle=(0, (4, 3)))


def _name_epochs(axes: Axes, records: BalanceRecords) -> None:
    marks = _marks(records)
    if not marks:
        return
    top = axes.secondary_xaxis("top")
    top.set_xticks([step - 0.5 for _, step in marks], [str(epoch) for epoch, _ in marks])
    top.tick_params(labelsize=8, length=3, colors=_SOFT, pad=1)
    top.spines["top"].set_visible(False)
    top.set_xlabel("epoch", fontsize=8.5, color=_SOFT, loc="left")


def _finish(axes: Axes) -> None:
    axes.tick_params(labelsize=8, colors=_SOFT)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#c5ccd6")

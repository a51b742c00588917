"""Curves of a run: losses per task, and scores over time."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from perception.utils import iter_json_lines
from perception.visualization.log_records import loss_series, score_series

TASK_COLOURS = ("#2f5d8a", "#d1495b", "#2a9d8f", "#e09f3e", "#7b5ea7", "#5c6b73")
"""Colours of curves, one per task."""

_DPI = 110
_MAX_COLUMNS = 3


def training_curves(log_path: str | Path, out_path: str | Path) -> Path:
    """Picture of the losses in a log: the total and one panel per task, raw (pale) and smoothed.

    Args:
        log_path: a run's `log.jsonl`.
        out_path: picture to write, by its suffix (.png).

    Returns:
        `out_path`.

    Raises:
        ValueError: the log holds no training step.
    """
    series = loss_series(iter_json_lines(log_path))
    if not series:
        raise ValueError(f"{log_path} holds no training step (a record with 'step' and 'loss').")
    figure, panels = _panels(len(series))
    for axes, (name, pairs), colour in zip(panels, series.items(), _cycle(len(series)), strict=True):
        steps, values = np.array(pairs).T
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(steps, smooth(values), color=colour, linewidth=1.8, marker=None if len(steps) > 1 else "o")
        axes.set_title("total loss" if name == "loss" else name, loc="left", fontsize=11, fontweight="bold")
        if values.min() > 0 and values.max() > 20 * values.min():
            axes.set_yscale("log")
        _finish(axes)
    return save_figure(figure, out_path)


def plot_metrics(log_path: str | Path, out_path: str | Path) -> Path:
    """Picture of the scores (NDS, mAP, mIoU) of a log's evaluations.

    Raises:
        ValueError: the log holds no evaluation.
    """
    series = score_series(iter_json_lines(log_path))
    if not series:
        raise ValueError(f"{log_path} holds no evaluation (a record with NDS, mAP or mIoU).")
    figure, (axes,) = _panels(1)
    for (name, pairs), colour in zip(series.items(), _cycle(len(series)), strict=True):
        steps, values = np.array(pairs).T
        axes.plot(steps, values, color=colour, marker="o", markersize=4, linewidth=1.8, label=name)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=9)
    axes.set_title("scores", loc="left", fontsize=11, fontweight="bold")
    _finish(axes)
    return save_figure(figure, out_path)


def smooth(values: np.ndarray, share: float = 0.05) -> np.ndarray:
    """Centred running mean over a share of the curve; at the ends over what there is.

    Example:
        >>> smooth(np.array([1.0, 2.0, 3.0, 4.0]), share=0.75).tolist()
        [1.5, 2.0, 3.0, 3.5]
    """
    half = int(len(values) * share) // 2
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    first, last = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    columns = min(count, _MAX_COLUMNS)
    rows = -(-count // columns)
    figure = Figure(figsize=(max(3.6 * columns, 5.0), 2.5 * rows), dpi=_DPI, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for spare in grid[count:]:
        spare.set_axis_off()
    return figure, list(grid[:count])


def _cycle(count: int) -> list[str]:
    return [TASK_COLOURS[index % len(TASK_COLOURS)] for index in range(count)]


def _finish(axes: Axes) -> None:
    bare_axes(axes)
    axes.set_xlabel("step", fontsize=9)
    axes.grid(color="#e6eaf0", linewidth=0.8)


def bare_axes(axes: Axes) -> None:
    """What all pictures of a run have in common: small tick labels, no frame above and to the right."""
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure, by the path's suffix, without a display."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_figure(str(path))
    return path

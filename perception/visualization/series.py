"""Series over training steps made fit for a picture: running means, columns, gaps, means over seeds."""

from collections.abc import Mapping, Sequence

import numpy as np

Series = list[tuple[float, float]]
"""(step, value) pairs."""

_GAP = 4.0  # a series is interrupted where its steps are this many times further apart than usual


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


def binned(rows: Mapping[str, Series], max_columns: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """Means over stretches of steps, for a heat map.

    Args:
        rows: name → series.
        max_columns: about as many columns at most.

    Returns:
        edges: (columns + 1,), steps.
        values: (rows, columns), NaN where a row has nothing.

    Example:
        >>> edges, values = binned({"a/b": [(1.0, 0.5), (2.0, -0.5)], "a/c": [(2.0, 1.0)]})
        >>> edges.tolist(), values.tolist()
        ([0.5, 1.5, 2.5], [[0.5, -0.5], [nan, 1.0]])
    """
    steps = np.unique([step for series in rows.values() for step, _ in series])
    usual = usual_distance(steps)
    edges: list[float] = []
    for stretch in np.split(steps, np.flatnonzero(np.diff(steps) > _GAP * usual) + 1):
        count = max(round(max_columns * len(stretch) / len(steps)), 1)
        chunks = np.array_split(stretch, min(count, len(stretch)))
        edges += [chunks[0][0] - usual / 2]
        edges += [(left[-1] + right[0]) / 2 for left, right in zip(chunks, chunks[1:], strict=False)]
        edges += [stretch[-1] + usual / 2]  # up to the next stretch a column stays empty
    values = np.full((len(rows), len(edges) - 1), np.nan)
    for number, series in enumerate(rows.values()):
        at, value = np.array(series).T
        column = np.clip(np.searchsorted(edges, at, side="right") - 1, 0, len(edges) - 2)
        counts = np.bincount(column, minlength=len(edges) - 1)
        sums = np.bincount(column, weights=value, minlength=len(edges) - 1)
        values[number, counts > 0] = sums[counts > 0] / counts[counts > 0]
    return np.array(edges), values


def thinned(series: Series, max_points: int = 100) -> Series:
    """A curve of at most so many points, each the mean over a stretch of equally many.

    Example:
        >>> thinned([(1.0, 0.0), (2.0, 1.0), (3.0, 4.0), (4.0, 6.0)], max_points=2)
        [(1.5, 0.5), (3.5, 5.0)]
    """
    if len(series) <= max_points:
        return list(series)
    chunks = np.array_split(np.array(series, dtype=np.float64), max_points)
    return [(float(step), float(value)) for step, value in (chunk.mean(axis=0) for chunk in chunks)]


def over_runs(runs: Sequence[Series]) -> tuple[Series, list[tuple[float, float, float]]]:
    """Mean curve of several runs over the steps that all of them have reached, and their range.

    Args:
        runs: the runs' series, each with a point at least and steps that rise.

    Returns:
        The mean at the first run's steps, and (step, lowest, highest) there; no range of a single run.

    Example:
        >>> over_runs([[(1.0, 0.0), (3.0, 2.0)], [(1.0, 2.0), (2.0, 4.0)]])
        ([(1.0, 1.0)], [(1.0, 0.0, 2.0)])
    """
    if len(runs) == 1:
        return list(runs[0]), []
    first = max(run[0][0] for run in runs)
    last = min(run[-1][0] for run in runs)
    steps = np.array([step for step, _ in runs[0] if first <= step <= last])
    if not len(steps):
        return [], []
    values = np.stack([np.interp(steps, *np.array(run).T) for run in runs])  # (runs, steps)
    low, high = values.min(axis=0), values.max(axis=0)
    mean = list(zip(steps.tolist(), values.mean(axis=0).tolist(), strict=True))
    return mean, list(zip(steps.tolist(), low.tolist(), high.tolist(), strict=True))


def with_gaps(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The curve with a NaN wherever its steps are much further apart than usual, so that no line bridges them.

    Example:
        >>> with_gaps(np.array([1.0, 2.0, 3.0, 20.0]), np.array([1.0, 1.0, 1.0, 0.0]))[1].tolist()
        [1.0, 1.0, 1.0, nan, 0.0]
    """
    gaps = np.flatnonzero(np.diff(steps) > _GAP * usual_distance(steps)) + 1
    return np.insert(steps, gaps, np.nan), np.insert(values, gaps, np.nan)


def usual_distance(steps: np.ndarray) -> float:
    """Median distance of neighbours; 1 for a single step.

    Example:
        >>> usual_distance(np.array([1.0, 2.0, 3.0, 30.0]))
        1.0
    """
    return float(np.median(np.diff(steps))) if len(steps) > 1 else 1.0


def mean_of(series: Series) -> float:
    """Mean value.

    Example:
        >>> mean_of([(1.0, 2.0), (5.0, 4.0)])
        3.0
    """
    return float(np.mean([value for _, value in series]))

"""What the runs cost: times, throughput, memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

from perception.utils.seed_statistics import over_seeds
from perception.visualization.run_groups import Run, RunGroup
from perception.visualization.run_summary import number

_PHASES = ("setup", "synthesize", "train", "evaluate")


@dataclass(frozen=True)
class CostRow:
    """One kind of cost: its name and a text per method, "" where it is not known."""

    name: str
    texts: list[str]


def cost_rows(groups: Sequence[RunGroup]) -> list[CostRow]:
    """Rows that a method at least has a number for."""
    phases = dict.fromkeys(_PHASES) | dict.fromkeys(
        name for group in groups for run in group.runs for name in _seconds(run)
    )
    kinds: list[tuple[str, Callable[[Run], float | None], Callable[[float], str]]] = [
        (f"{name.replace('_', ' ')} time", partial(_phase, name=name), duration) for name in phases
    ]
    kinds += [
        ("in all", _total, duration),
        ("training speed, samples/s", partial(_of_summary, name="samples_per_second"), lambda x: f"{x:.2f}"),
        ("median step", _step, lambda seconds: f"{seconds:.3f} s"),
        ("share of waiting for data", _waiting, lambda share: f"{share:.0%}"),
        ("peak memory", _memory, lambda megabytes: f"{megabytes:,.0f} MB"),
    ]
    if sum(len(group.runs) for group in groups) > 1:  # not all of them may have gone through all phases
        kinds = [kind for kind in kinds if kind[1] is not _total]
    rows = [
        CostRow(name, [_mean_text(group, value, text) for group in groups]) for name, value, text in kinds
    ]
    return [row for row in rows if any(row.texts)]


def duration(seconds: float) -> str:
    """Seconds in words.

    Example:
        >>> duration(7.25), duration(754), duration(7322)
        ('7.2 s', '12 min 34 s', '2 h 02 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _mean_text(
    group: RunGroup, value_of: Callable[[Run], float | None], text_of: Callable[[float], str]
) -> str:
    values = [value for run in group.runs if (value := value_of(run)) is not None]
    return text_of(over_seeds(values).mean) if values else ""


def _phase(run: Run, name: str) -> float | None:
    return _seconds(run).get(name)


def _seconds(run: Run) -> dict[str, float]:
    given = run.summary.summary.get("seconds")
    found = given if isinstance(given, dict) else {}
    return {name: value for name, entry in found.items() if (value := number(entry)) is not None}


def _total(run: Run) -> float | None:
    seconds = _seconds(run)
    return sum(seconds.values()) if len(seconds) > 1 else None


def _of_summary(run: Run, name: str) -> float | None:
    return number(run.summary.summary.get(name))


def _step(run: Run) -> float | None:
    series = run.log.times.get("step_time")
    return median(value for _, value in series) if series else None


def _waiting(run: Run) -> float | None:
    step, data = (run.log.times.get(name) for name in ("step_time", "data_time"))
    if not step or not data:
        return None
    total = sum(value for _, value in step)
    return sum(value for _, value in data) / total if total > 0 else None


def _memory(run: Run) -> float | None:
    peak = _of_summary(run, "peak_memory_mb")
    series = run.log.times.get("memory_mb")
    return peak if peak is not None or not series else max(value for _, value in series)

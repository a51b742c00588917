"""What a run's `log.jsonl` holds, as series over training steps; a damaged log is read up to its damage."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perception.utils import iter_json_lines
from perception.visualization.balance_records import BalanceRecords
from perception.visualization.log_records import is_number, loss_series, score_series, step_of
from perception.visualization.series import Series

_TIMES = ("step_time", "data_time", "memory_mb")


@dataclass
class RunLog:
    """Series of a log.

    Attributes:
        losses: "loss" (the total) and tasks → series.
        rates: learning rate.
        scores: "NDS", "mIoU", … of the evaluations → series.
        times: "step_time" and "data_time" in seconds, "memory_mb" → series.
        balance: what was recorded of the balancing.
        last_metrics: the last evaluation's numbers, classes included.
        last_step: of training; None without a step.
        notes: what is wrong with the log.
    """

    losses: dict[str, Series] = field(default_factory=dict)
    rates: Series = field(default_factory=list)
    scores: dict[str, Series] = field(default_factory=dict)
    times: dict[str, Series] = field(default_factory=dict)
    balance: BalanceRecords = field(default_factory=BalanceRecords)
    last_metrics: dict[str, Any] = field(default_factory=dict)
    last_step: float | None = None
    notes: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: str | Path) -> "RunLog":
        """Read a log, some times over: on the full data set its lines are gigabytes as Python objects.

        A line that is no JSON ends it, with a note; a last line cut short, as of a killed run, is left out.
        """
        path = Path(path)
        log = cls()
        if not path.is_file():
            log.notes.append("there is no log.jsonl, so no curves.")
            return log

        def each(read: Callable[[Iterable[Mapping[str, Any]]], Any]) -> Any:
            return read(_readable(path, log.notes))

        log.losses = each(loss_series)
        log.scores = each(score_series)
        log.balance = each(BalanceRecords.from_log)
        each(log._add_times)
        if not log.losses:
            log.notes.append("log.jsonl holds no training step, so no curves of losses.")
        return log

    def tasks(self) -> list[str]:
        """Tasks whose losses were logged."""
        return [name for name in self.losses if name != "loss"]

    def _add_times(self, records: Iterable[Mapping[str, Any]]) -> None:
        for record in records:
            step = step_of(record)
            if record.get("kind") == "val" and isinstance(record.get("metrics"), Mapping):
                self.last_metrics = {**record["metrics"], "step": step}
            if step is None or record.get("kind", "train") != "train":
                continue
            self.last_step = step
            if is_number(record.get("lr")):
                self.rates.append((step, float(record["lr"])))
            for name in _TIMES:
                if is_number(record.get(name)):
                    self.times.setdefault(name, []).append((step, float(record[name])))


def _readable(path: Path, notes: list[str]) -> Iterator[dict[str, Any]]:
    try:
        yield from iter_json_lines(path)
    except ValueError as error:
        reason = str(error).replace(str(path), path.name).rstrip(".")
        note = f"{reason}: what comes after it is left out."
        if note not in notes:
            notes.append(note)
